"""Step time of the Metis authors' published layers over a policy's, in the same model and process.

    python benchmarks/against.py path/to/Metis --rounds 5 --out benchmarks/results/against

The path is a checkout of their code (github.com/sii-research/Metis), which runs: give one that you trust. Both compute
in float32, as theirs does.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from published import FORMS, check_checkout, published_layers
from rich.console import Console

from metis_compile.bench.candidate import check_policies, name_of, trainer
from metis_compile.bench.plot import bars
from metis_compile.bench.report import Report
from metis_compile.bench.runner import Options, Task, run_tasks
from metis_compile.bench.size import size_text
from metis_compile.bench.turns import WARM_UP, in_turn
from metis_compile.cli.bench import (
    LAYERS,
    OUT,
    ROUNDS,
    TOKENS,
    WIDTH,
    AsJson,
    Device,
    Layers,
    Out,
    Rounds,
    Threads,
    Tokens,
    Width,
    show,
    size,
)
from metis_compile.measure.ratio import Ratio
from metis_compile.measure.repository import commit_of
from metis_compile.train.report import milliseconds
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import Trainer
from metis_compile.train.variant import FULL_PRECISION

__all__ = ["HEADINGS", "bench_against", "cells", "measure"]

HEADINGS = ("published", "policy", "published fwd+bwd", "policy's", "published / policy")

HERE = Path(__file__).resolve().parent
MODES = ("eager", "compiled")  # how their model is run


def measure(
    candidate: str, settings: Settings, stepped: Callable[[int], None], *, rounds: int, path: str, form: str
) -> dict[str, Any]:
    """Worker: times of the model with their layers, eager and compiled around them, and of the candidate, in turn."""
    learners = [published(Path(path), form, mode, settings) for mode in MODES]
    learners.append(trainer(candidate, settings))
    times = in_turn(learners, settings, rounds, stepped)
    return dict(zip([*MODES, "candidate"], map(asdict, times), strict=True))


def published(path: Path, form: str, mode: str, settings: Settings) -> Trainer:
    """A model with their layers."""
    change = published_layers(path, form, compiled=mode == "compiled")
    made = Trainer(replace(FULL_PRECISION, label=f"published, {mode}", changes=(change,)), settings)
    if mode == "eager":
        made.compiled = made.model
    return made


def label_of(policy: str, form: str) -> str:
    """Of the process that measures a policy beside a form of their layers; the key of its times."""
    return f"{policy}, published {form}"


def ratio_of(row: dict[str, Any], numbers: dict[str, Any]) -> Ratio:
    """Their steps' times over the policy's, of one row of the report's JSON."""
    result = numbers["times"][label_of(row["policy"], row["published"])]
    return Ratio.of(result[row["mode"]]["gradients"], result["candidate"]["gradients"])


def cells(numbers: dict[str, Any]) -> list[list[str]]:
    """The table's, from the times in the report's JSON."""
    made = []
    for row in numbers["rows"]:
        result = numbers["times"][label_of(row["policy"], row["published"])]
        made.append(
            [
                f"{row['published']}, {row['mode']}",
                row["policy"],
                *(milliseconds(median(result[side]["gradients"])) for side in (row["mode"], "candidate")),
                str(ratio_of(row, numbers)),
            ]
        )
    return made


def bench_against(
    path: Path, policies: Sequence[str], settings: Settings, options: Options, console: Console
) -> Report:
    """Each policy beside each form of their layers. Raises BenchError if ``path`` is no checkout of their code."""
    path = path.expanduser().resolve()
    check_checkout(path)
    candidates = check_policies(policies)
    tasks = {
        (form, text): Task(
            label=label_of(name_of(text), form),
            kind="against",
            settings=settings,
            candidate=text,
            given={"rounds": options.rounds, "path": str(path), "form": form},
            steps=WARM_UP + options.rounds,
            worker="against_worker",
            environment={"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        )
        for form in FORMS
        for text in candidates
    }
    measured = run_tasks(list(tasks.values()), options, console)
    rows = []
    found: dict[tuple[str, str, str], Ratio] = {}
    for (form, text), task in tasks.items():
        if task.label not in measured.results:
            continue
        result = measured.results[task.label]
        ours = result["candidate"]["gradients"]
        for mode in MODES:
            ratio = Ratio.of(result[mode]["gradients"], ours)
            found[form, mode, text] = ratio
            rows.append({"published": form, "mode": mode, "policy": name_of(text), "ratio": asdict(ratio)})
    numbers = {
        "published": commit_of(path / "Metis"),
        "forms": FORMS,
        "settings": asdict(settings),
        "rows": rows,
        "times": {task.label: measured.results.get(task.label) for task in tasks.values()},
    }

    def draw(figure: Any) -> None:
        kinds = [(form, mode) for form in FORMS for mode in MODES]
        series = {name_of(text): [found.get((*kind, text)) for kind in kinds] for text in candidates}
        bars(figure.subplots(), [", ".join(kind) for kind in kinds], series, unit="published / policy", line=1)

    return Report(
        name="against",
        title=f"forward and backward, {size_text(settings)}: median over {options.rounds} rounds (quartiles)",
        headings=HEADINGS,
        cells=cells(numbers),
        numbers=numbers,
        draw=draw,
        measured=measured,
    )


def main(
    path: Annotated[Path, typer.Argument(help="A checkout of the Metis authors' code.")],
    policy: Annotated[list[str], typer.Option(help="A preset or a policy file; several times for several.")] = [  # noqa: B006
        "metis-paper",
        "metis",
    ],
    width: Width = WIDTH,
    layers: Layers = LAYERS,
    tokens: Tokens = TOKENS,
    rounds: Rounds = ROUNDS,
    device: Device = "auto",
    threads: Threads = None,
    out: Out = OUT,
    json: AsJson = False,
) -> None:
    """Step time of the published layers over a policy's, in the same GPT."""

    def run(options: Options, console: Console) -> Report:
        return bench_against(path, policy, size(width, layers, tokens, device, "float32"), options, console)

    show(run, out=out, rounds=rounds, threads=threads, json=json)


if __name__ == "__main__":
    typer.run(main)
