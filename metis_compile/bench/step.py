"""Step time: forward and backward, and the whole optimizer step, over plain Inductor's in the same process."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.console import Console

from metis_compile.bench.candidate import PLAIN, autocast, check_policies, name_of, trainer
from metis_compile.bench.plot import bars
from metis_compile.bench.report import Report
from metis_compile.bench.runner import Options, Task, run_tasks
from metis_compile.bench.size import size_text
from metis_compile.bench.turns import WARM_UP, in_turn
from metis_compile.measure.ratio import Ratio
from metis_compile.train.report import milliseconds
from metis_compile.train.settings import Settings

__all__ = ["HEADINGS", "bench_step", "cells", "measure", "ratios", "step_task"]

HEADINGS = ("policy", "width", "plain", "policy's", "ratio", "quartiles", "of sums", "whole step")


def measure(candidate: str, settings: Settings, stepped: Callable[[int], None], *, rounds: int) -> dict[str, Any]:
    """Worker: times of plain Inductor and of the candidate, step by step in turn."""
    learners = [trainer(text, settings) for text in (PLAIN, candidate)]
    return dict(zip(("plain", "candidate"), map(asdict, in_turn(learners, settings, rounds, stepped)), strict=True))


def step_task(candidate: str, settings: Settings, rounds: int, label: str) -> Task:
    """The worker that measures one candidate's steps."""
    given = {"rounds": rounds}
    return Task(label=label, kind="step", settings=settings, candidate=candidate, given=given, steps=WARM_UP + rounds)


def ratios(result: dict[str, Any]) -> tuple[Ratio, Ratio]:
    """Of forward and backward, and of the whole step."""
    mine, plain = result["candidate"], result["plain"]
    return Ratio.of(mine["gradients"], plain["gradients"]), Ratio.of(mine["whole"], plain["whole"])


def of_sums(result: dict[str, Any]) -> float:
    """All the candidate's seconds of forward and backward over all of plain Inductor's."""
    return float(sum(result["candidate"]["gradients"]) / sum(result["plain"]["gradients"]))


def cells(numbers: dict[str, Any]) -> list[list[str]]:
    """The table's, from the times in the report's JSON."""
    made = []
    for row in numbers["rows"]:
        result = row["times"]
        gradients, whole = ratios(result)
        made.append(
            [
                row["policy"],
                str(row["settings"]["width"]),
                *(milliseconds(median(result[side]["gradients"])) for side in ("plain", "candidate")),
                f"{gradients.median:.2f}x",
                f"{gradients.low:.2f}-{gradients.high:.2f}",
                f"{of_sums(result):.2f}x",
                str(whole),
            ]
        )
    return made


def bench_step(policies: Sequence[str], sizes: Sequence[Settings], options: Options, console: Console) -> Report:
    """Each policy at each size; beside float32, plain Inductor under bfloat16 autocast too."""
    candidates = check_policies(policies) + autocast(sizes[0], console)
    tasks = {
        (text, settings.width): step_task(text, settings, options.rounds, f"{name_of(text)}, width {settings.width}")
        for settings in sizes
        for text in candidates
    }
    measured = run_tasks(list(tasks.values()), options, console)
    of_width = {settings.width: settings for settings in sizes}
    rows = []
    found: dict[tuple[str, int], Ratio] = {}
    for (text, width), task in tasks.items():
        if task.label not in measured.results:
            continue
        result = measured.results[task.label]
        gradients, whole = ratios(result)
        found[text, width] = gradients
        row = {"policy": name_of(text), "settings": asdict(of_width[width]), "times": result}
        ratio = {
            "forward_backward": asdict(gradients),
            "forward_backward_of_sums": of_sums(result),
            "step": asdict(whole),
        }
        rows.append(row | {"ratio": ratio})
    numbers = {"rows": rows}

    def draw(figure: Any) -> None:
        series = {f"width {s.width}": [found.get((text, s.width)) for text in candidates] for s in sizes}
        bars(figure.subplots(), [name_of(t) for t in candidates], series, unit="forward + backward / plain", line=1)

    return Report(
        name="step",
        title=f"step time, {size_text(*sizes)}: forward and backward, {options.rounds} rounds",
        headings=HEADINGS,
        cells=cells(numbers),
        numbers=numbers,
        draw=draw,
        measured=measured,
    )
