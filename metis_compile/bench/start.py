"""Start time: the first forward and backward, which compile, without and with what an earlier process left on disk."""

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.console import Console

from metis_compile.bench.candidate import PLAIN, check_policies, name_of, trainer
from metis_compile.bench.clock import cpu_seconds
from metis_compile.bench.plot import bars
from metis_compile.bench.report import Report
from metis_compile.bench.runner import Options, Task, run_tasks
from metis_compile.bench.size import size_text
from metis_compile.bench.turns import batch
from metis_compile.compat import compile_phases, inductor_sources
from metis_compile.measure.ratio import Ratio
from metis_compile.train.settings import Settings

__all__ = ["HEADINGS", "STARTS", "bench_compile", "cells", "kernels_in", "measure", "share", "start_tasks"]

# What backend="metis" adds to Inductor, by its phases: the passes, and the C++ kernels, which are compiled once and are
# then in Inductor's cache.
SHARES = {
    "passes": ("metis_backend", "metis_joint_pass", "metis_lowering_pass"),
    "kernels": ("metis_cpu_kernels",),
}
HEADINGS = ("policy", "start", "wall", "CPU", "wall ratio", "CPU ratio", "kernels", "our passes", "our C++")
KERNEL = re.compile(r"= async_compile\.(?:cpp_pybinding|triton)\(")  # where Inductor's code defines one
STARTS = ("cold", "warm")


def measure(candidate: str, settings: Settings, stepped: Callable[[int], None]) -> dict[str, Any]:
    """Worker: from a model that is not compiled to its first gradients. Seconds; phases overlap one another."""
    made = trainer(candidate, settings)
    tokens, targets = batch(settings, 0)
    used, began = cpu_seconds(), time.perf_counter()
    with inductor_sources() as sources:
        made.gradients(tokens, targets).item()
    wall, cpu = time.perf_counter() - began, cpu_seconds() - used
    return {"wall_seconds": wall, "cpu_seconds": cpu, "kernels": kernels_in(sources), "phases": compile_phases()}


def kernels_in(sources: Sequence[str]) -> int:
    """C++ and Triton kernels that Inductor's code defines; what several layers share is one in each graph."""
    return sum(len(KERNEL.findall(source)) for source in sources)


def start_tasks(candidate: str, settings: Settings, label: str, cache: str) -> list[Task]:
    """A cold start that leaves its caches in the folder ``cache``, and then a warm one that finds them there."""
    return [
        Task(
            label=f"{label}, {how}",
            kind="start",
            settings=settings,
            candidate=candidate,
            environment={"TORCHINDUCTOR_CACHE_DIR": cache},
        )
        for how in STARTS
    ]


def share(result: dict[str, Any], what: str) -> float:
    """How much of a start's wall time went into one of SHARES, from 0 to 1."""
    return sum(result["phases"].get(phase, 0.0) for phase in SHARES[what]) / float(result["wall_seconds"])


def bench_compile(policies: Sequence[str], settings: Settings, options: Options, console: Console) -> Report:
    """Cold and warm starts of each policy and of plain Inductor, in turn, each in a process and a cache of its own."""
    candidates = list(dict.fromkeys([PLAIN, *check_policies(policies)]))
    with ExitStack() as stack:
        tasks = [
            task
            for i in range(options.rounds)
            for text in candidates[:: 1 if i % 2 == 0 else -1]
            for task in start_tasks(
                text,
                settings,
                f"{name_of(text)} {i}",
                stack.enter_context(tempfile.TemporaryDirectory(prefix="metis-bench-", ignore_cleanup_errors=True)),
            )
        ]
        measured = run_tasks(tasks, options, console)

    rounds: dict[tuple[str, str], dict[int, Any]] = {
        (text, how): {
            i: measured.results[label]
            for i in range(options.rounds)
            if (label := f"{name_of(text)} {i}, {how}") in measured.results
        }
        for text in candidates
        for how in STARTS
    }
    rows = []
    found: dict[tuple[str, str], Ratio | None] = {}
    for text in candidates:
        row: dict[str, Any] = {"policy": name_of(text), "settings": asdict(settings)}
        for how in STARTS:
            mine = rounds[text, how]
            ratio = {what: ratio_of(mine, rounds[PLAIN, how], what) for what in ("wall", "cpu")}
            found[text, how] = ratio["wall"]
            row[how] = {
                "rounds": list(mine),  # those of which there are starts
                "starts": list(mine.values()),
                "ratio": {what: r and asdict(r) for what, r in ratio.items()},
                "shares": shares_of(mine),
            }
        rows.append(row)
    numbers = {"rows": rows}

    def draw(figure: Any) -> None:
        series = {how: [found[text, how] for text in candidates] for how in ("cold", "warm")}
        bars(figure.subplots(), [name_of(t) for t in candidates], series, unit="start / plain, wall time", line=1)

    return Report(
        name="compile",
        title=f"first forward and backward, {size_text(settings)}: median of {options.rounds}, a process each",
        headings=HEADINGS,
        cells=cells(numbers),
        numbers=numbers,
        draw=draw,
        measured=measured,
    )


def ratio_of(mine: Mapping[int, dict[str, Any]], plain: Mapping[int, dict[str, Any]], what: str) -> Ratio | None:
    """Of "wall" or "cpu" seconds, over the rounds in which both started; None without such a round."""
    both = sorted(mine.keys() & plain.keys())
    left, right = ([results[i][f"{what}_seconds"] for i in both] for results in (mine, plain))
    return Ratio.of(left, right) if left else None


def shares_of(results: Mapping[int, dict[str, Any]]) -> dict[str, float]:
    """The median of each of SHARES; nothing where nothing started."""
    return {what: median(share(result, what) for result in results.values()) for what in SHARES if results}


def starts_of(row: dict[str, Any], how: str) -> dict[int, dict[str, Any]]:
    """A policy's starts in the report's JSON, by round."""
    starts = row[how]["starts"]
    return dict(zip(row[how].get("rounds", range(len(starts))), starts, strict=True))


def cells(numbers: dict[str, Any]) -> list[list[str]]:
    """The table's, from the starts in the report's JSON."""
    (plain,) = (row for row in numbers["rows"] if row["policy"] == PLAIN)
    made = []
    for row in numbers["rows"]:
        for how in STARTS:
            mine = starts_of(row, how)
            shares = shares_of(mine) if row is not plain else {}
            ratios = [ratio_of(mine, starts_of(plain, how), what) for what in ("wall", "cpu")]
            kernels = sorted({start["kernels"] for start in mine.values() if "kernels" in start})
            seconds = [[start[f"{what}_seconds"] for start in mine.values()] for what in ("wall", "cpu")]
            made.append(
                [
                    row["policy"],
                    how,
                    *(f"{median(taken):.1f} s" if taken else "-" for taken in seconds),
                    *("-" if ratio is None else str(ratio) for ratio in ratios),
                    " or ".join(str(n) for n in kernels) or "-",
                    *(f"{100 * shares[what]:.1f} %" if shares else "-" for what in SHARES),
                ]
            )
    return made
