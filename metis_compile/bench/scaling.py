"""How cost grows with size: step time, compile time and saved bytes over plain Inductor's, along one axis at a time."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from metis_compile.bench.candidate import PLAIN, check_policies, name_of
from metis_compile.bench.plot import grid
from metis_compile.bench.report import Report
from metis_compile.bench.runner import Options, Task, run_tasks
from metis_compile.bench.size import settings_of, size_text
from metis_compile.bench.start import STARTS, start_tasks
from metis_compile.bench.step import ratios, step_task
from metis_compile.train.settings import Settings

__all__ = ["AXES", "HEADINGS", "bench_scaling", "cells"]

AXES = ("width", "layers", "tokens")
PANELS = {
    "step_ratio": "step / plain",
    "cold_ratio": "cold start / plain",
    "warm_ratio": "warm start / plain",
    "saved_ratio": "saved / plain",
}
HEADINGS = ("policy", "axis", "at", *PANELS.values())


def growth(labels: Mapping[str, str], times: Mapping[str, Any]) -> dict[str, Any]:
    """What PANELS show of a policy at a size, and the quartiles of the step's; None for what failed."""
    stepped = times.get(labels["steps"])
    found: dict[str, Any] = dict.fromkeys([*PANELS, "step_quartiles"])
    if stepped is not None:
        ratio = ratios(stepped)[0]
        found["step_ratio"], found["step_quartiles"] = ratio.median, (ratio.low, ratio.high)
        found["saved_ratio"] = stepped["candidate"]["saved_bytes"] / stepped["plain"]["saved_bytes"]
    for how in STARTS:
        mine, plain = (times.get(labels[what]) for what in (how, f"plain_{how}"))
        if mine is not None and plain is not None:
            found[f"{how}_ratio"] = mine["wall_seconds"] / plain["wall_seconds"]
    return found


def add_cache(source: Task, task: Task) -> None:
    """Beside what is in a task's cache, what another task has left in its own."""
    left, right = (t.environment["TORCHINDUCTOR_CACHE_DIR"] for t in (source, task))
    shutil.copytree(left, right, dirs_exist_ok=True)


def cells(numbers: dict[str, Any]) -> list[list[str]]:
    """The table's, from the times in the report's JSON."""
    made = []
    for row in numbers["rows"]:
        found = growth(row["times"], numbers["times"])
        texts = {key: "-" if found[key] is None else f"{found[key]:.2f}x" for key in PANELS}
        if found["step_quartiles"] is not None:
            low, high = found["step_quartiles"]
            texts["step_ratio"] += f" ({low:.2f}-{high:.2f})"
        made.append([row["policy"], row["axis"], str(row["at"]), *texts.values()])
    return made


def bench_scaling(
    policies: Sequence[str],
    middle: Mapping[str, Any],
    points: Mapping[str, Sequence[int]],
    device: str,
    dtype: str,
    options: Options,
    console: Console,
) -> Report:
    """Each policy at ``middle``, and at each of the ``points`` of an axis with the other two at the middle's.

    Cold starts are of a process and a cache of their own each. Warm starts find that cache, and so does the process
    that times steps beside plain Inductor's: nothing is compiled twice.
    """
    candidates = check_policies(policies)
    places = {(axis, point): {**middle, axis: point} for axis in AXES for point in sorted(set(points[axis]))}
    sizes = {place: settings_of(**size, device=device, dtype=dtype) for place, size in places.items()}
    starts: dict[tuple[str, Settings], list[Task]] = {}  # cold, warm
    steps: dict[tuple[str, Settings], Task] = {}
    with ExitStack() as stack:
        for settings in dict.fromkeys(sizes.values()):
            for text in dict.fromkeys([PLAIN, *candidates]):
                label = f"{name_of(text)}, {size_text(settings)}"
                folder = tempfile.TemporaryDirectory(prefix="metis-bench-", ignore_cleanup_errors=True)
                starts[text, settings] = start_tasks(text, settings, label, stack.enter_context(folder))
                if text in candidates:
                    cache = starts[text, settings][0].environment
                    task = step_task(text, settings, options.rounds, f"{label}, steps")
                    steps[text, settings] = replace(task, environment=cache)
        started = [task for tasks in starts.values() for task in tasks]
        measured = run_tasks(started, options, console)
        if measured.signal is None:
            for (text, settings), task in steps.items():
                if text != PLAIN:
                    add_cache(starts[PLAIN, settings][0], task)
            measured = measured.and_then(run_tasks(list(steps.values()), options, console))

    times = measured.results
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for (axis, point), settings in sizes.items():
        for text in candidates:
            labels = {
                "steps": steps[text, settings].label,
                **{how: task.label for how, task in zip(STARTS, starts[text, settings], strict=True)},
                **{f"plain_{how}": task.label for how, task in zip(STARTS, starts[PLAIN, settings], strict=True)},
            }
            row = {"policy": name_of(text), "axis": axis, "at": point, "settings": asdict(settings), "times": labels}
            rows[text, axis, point] = row | growth(labels, times)
    numbers = {
        "rows": list(rows.values()),
        "times": {task.label: times.get(task.label) for task in [*started, *steps.values()]},
    }

    def draw(figure: Any) -> None:
        figure.set_size_inches(10, 8)
        labels = {label: key for key, label in PANELS.items()}
        grid(
            figure,
            {axis: sorted({p for a, p in places if a == axis}) for axis in AXES},
            list(labels),
            lambda row, axis, point: {name_of(t): rows[t, axis, point][labels[row]] for t in candidates},
        )

    return Report(
        name="scaling",
        title=f"growth over plain Inductor, around {size_text(settings_of(**middle, device=device, dtype=dtype))}",
        headings=HEADINGS,
        cells=cells(numbers),
        numbers=numbers,
        draw=draw,
        measured=measured,
    )
