"""How compile time grows with depth: what one more layer adds to a cold start, and to plain Inductor's."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import pairwise
from statistics import median
from typing import Any

from rich.console import Console

from metis_compile.bench.candidate import PLAIN, check_policies, name_of
from metis_compile.bench.plot import grid
from metis_compile.bench.report import Report
from metis_compile.bench.runner import Options, run_tasks
from metis_compile.bench.size import size_text
from metis_compile.bench.start import share, start_tasks
from metis_compile.train.settings import Settings

__all__ = ["HEADINGS", "bench_depth", "cells"]

HEADINGS = ("policy", "layers", "plain", "policy's", "plain's layer", "policy's", "ratio", "CPU ratio", "our passes")


def bench_depth(policies: Sequence[str], sizes: Sequence[Settings], options: Options, console: Console) -> Report:
    """Cold starts of each policy and of plain Inductor at each of ``sizes``, which differ in their layers alone.

    Each is a process with a cache of its own; in every other round the order is turned round.
    """
    candidates = list(dict.fromkeys([PLAIN, *check_policies(policies)]))
    cases = [(text, settings) for settings in sizes for text in candidates]
    with ExitStack() as stack:
        tasks = {
            (text, settings.layers, i): start_tasks(
                text,
                settings,
                f"{name_of(text)}, {settings.layers} layers, {i}",
                stack.enter_context(tempfile.TemporaryDirectory(prefix="metis-bench-", ignore_cleanup_errors=True)),
            )[0]
            for i in range(options.rounds)
            for text, settings in cases[:: 1 if i % 2 == 0 else -1]
        }
        measured = run_tasks(list(tasks.values()), options, console)
    rows: list[dict[str, Any]] = [
        {
            "policy": name_of(text),
            "settings": asdict(settings),
            "starts": [
                result
                for i in range(options.rounds)
                if (result := measured.results.get(tasks[text, settings.layers, i].label)) is not None
            ],
        }
        for text in candidates
        for settings in sizes
    ]
    numbers = {"rows": rows}

    def draw(figure: Any) -> None:
        found = {(row["policy"], row["settings"]["layers"]): row for row in rows}
        names = [name_of(text) for text in candidates]
        depths = {"layers": [settings.layers for settings in sizes]}

        def over_plain(_: str, axis: str, depth: int) -> dict[str, float | None]:
            plain = seconds(found[PLAIN, depth], "wall")
            mine = {name: seconds(found[name, depth], "wall") for name in names}
            return {name: value / plain if value and plain else None for name, value in mine.items()}

        grid(figure, depths, ["cold start / plain"], over_plain)

    return Report(
        name="depth",
        title=f"cold starts by depth, {size_text(sizes[0]).replace(f'{sizes[0].layers} layer', 'per layer', 1)}",
        headings=HEADINGS,
        cells=cells(numbers),
        numbers=numbers,
        draw=draw,
        measured=measured,
    )


def seconds(row: Mapping[str, Any], what: str) -> float | None:
    """The median of a row's "wall" or "cpu" seconds; None where nothing started."""
    return median(start[f"{what}_seconds"] for start in row["starts"]) if row["starts"] else None


def layer(less: Mapping[str, Any], more: Mapping[str, Any], what: str) -> float | None:
    """Seconds that a layer adds between two depths."""
    first, last = seconds(less, what), seconds(more, what)
    between = more["settings"]["layers"] - less["settings"]["layers"]
    return None if first is None or last is None else (last - first) / between


def cells(numbers: Mapping[str, Any]) -> list[list[str]]:
    """The table's, from the starts in the report's JSON. A layer is one of those since the depth before."""
    by_policy: dict[str, list[Any]] = {}
    for row in numbers["rows"]:
        by_policy.setdefault(row["policy"], []).append(row)
    plain = by_policy.pop(PLAIN)
    made = []
    for policy, mine in by_policy.items():
        added: list[dict[str, tuple[float | None, float | None]]] = [dict.fromkeys(("wall", "cpu"), (None, None))]
        for (low, less), (high, more) in pairwise(zip(plain, mine, strict=True)):
            added.append({what: (layer(low, high, what), layer(less, more, what)) for what in ("wall", "cpu")})
        for base, row, one in zip(plain, mine, added, strict=True):
            shares = [share(start, "passes") for start in row["starts"]]
            made.append(
                [
                    policy,
                    str(row["settings"]["layers"]),
                    *(text(seconds(each, "wall"), "{:.1f} s") for each in (base, row)),
                    *(text(value, "{:.2f} s") for value in one["wall"]),
                    *(text(b / a if a and b is not None else None, "{:.2f}x") for a, b in one.values()),
                    text(100 * median(shares) if shares else None, "{:.1f} %"),
                ]
            )
    return made


def text(value: float | None, how: str) -> str:
    return "-" if value is None else how.format(value)
