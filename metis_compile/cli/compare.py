"""``metis compare``: several policies, one table."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from metis_compile.cli.errors import UserError, user_errors

__all__ = ["compare"]

SIZE = "Size of the model and its batches"
RATE = "Optimizer and what is validated"


def compare(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY...",
            help="Presets or policy files. POLICY+shuffled starts from the same weights in another order and "
            "POLICY+redrawn rounds by other random numbers (what chance does), POLICY+perturbed changes each weight by "
            "a hundredth and POLICY+nudged by a millionth (how far that carries), POLICY+reparametrized trains linears "
            "in four parts.",
        ),
    ],
    seeds: Annotated[str, typer.Option(help="A number of seeds, or the seeds: 3, or 0,2,5.")] = "3",
    gemm: Annotated[
        bool,
        typer.Option(
            "--gemm",
            help="Compare the errors of single products, on tensors of a model in training, and train no other.",
        ),
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="600; 150 with --gemm")] = None,
    branch: Annotated[
        int,
        typer.Option(
            help="Train so many steps in full precision, once for each seed, and all policies from there: what chance "
            "makes of the first steps is then the same for all.",
            show_default="none",
        ),
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the trials, the table, the plot and the numbers.")] = Path(
        "runs/compare"
    ),
    html: Annotated[Path | None, typer.Option(help="Write a report to this file too, a page of HTML.")] = None,
    jobs: Annotated[int, typer.Option(help="Trials at a time, a process each.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each trial.", show_default="all cores divided by --jobs")
    ] = None,
    average: Annotated[int, typer.Option(help="Last steps in the training loss of the table.")] = 100,
    rounds: Annotated[int, typer.Option(help="Steps to measure step times over; 0 measures none.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="What full precision computes in: float32, or bfloat16 by autocast.",
            show_default="float32 on cpu, bfloat16 on cuda",
        ),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="AdamW's, at its highest.")] = 1e-3,
    warmup: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=RATE,
            help="Steps in which the learning rate rises.",
            show_default="20, or a fifth of --steps if that is less",
        ),
    ] = None,
    final_rate: Annotated[
        float, typer.Option(rich_help_panel=RATE, help="Share of the learning rate left at the end.")
    ] = 0.1,
    clip: Annotated[float, typer.Option(rich_help_panel=RATE, help="Largest norm of the gradients.")] = 1.0,
    average_weights: Annotated[
        float,
        typer.Option(
            rich_help_panel=RATE,
            help="Validate the mean of the weights over this share of the steps, at the end; 0: the last weights.",
        ),
    ] = 0.0,
    ema: Annotated[
        float,
        typer.Option(
            rich_help_panel=RATE,
            help="Validate a moving average of the weights of this decay; 0: the last weights.",
        ),
    ] = 0.0,
    text: Annotated[
        str | None, typer.Option(help="A file to train on.", show_default="Python's standard library")
    ] = None,
    model: Annotated[str, typer.Option(rich_help_panel=SIZE, help="gpt, or llama: that of transformers.")] = "gpt",
    width: Annotated[int, typer.Option(rich_help_panel=SIZE, help="Features.")] = 256,
    layers: Annotated[int, typer.Option(rich_help_panel=SIZE, help="Blocks.")] = 4,
    heads: Annotated[int, typer.Option(rich_help_panel=SIZE, help="Attention heads.")] = 4,
    context: Annotated[int, typer.Option(rich_help_panel=SIZE, help="Bytes in a sequence.")] = 256,
    batch: Annotated[int, typer.Option(rich_help_panel=SIZE, help="Sequences in a step.")] = 16,
) -> None:
    """Train a small model under several policies, from the same seeds on the same data, beside full precision.

    What is finished in --out is not run again: the same command goes on after an interruption, and with more policies
    or seeds it adds them.
    """
    from rich.console import Console

    from metis_compile.compare import order
    from metis_compile.compare.comparison import Comparison, Options
    from metis_compile.compare.gemm_report import compare_gemms
    from metis_compile.compare.summary import table
    from metis_compile.html_report import ReportError
    from metis_compile.policy import PolicyError
    from metis_compile.train.errors import TrainError
    from metis_compile.train.settings import Settings, resolve_device

    with user_errors(TrainError, PolicyError, ReportError):
        if gemm and html is not None:
            raise UserError("--html is a report of trained models, and --gemm trains none: leave one out")
        device = resolve_device(device)
        settings = Settings(
            steps=(150 if gemm else 600) if steps is None else steps,
            device=device,
            dtype=dtype or ("float32" if device == "cpu" else "bfloat16"),
            learning_rate=learning_rate,
            warmup=warmup,
            final_rate=final_rate,
            clip=clip,
            average_weights=average_weights,
            ema=ema,
            text=text,
            model=model,
            width=width,
            layers=layers,
            heads=heads,
            context=context,
            batch=batch,
        )
        if gemm:
            sheets, files = compare_gemms(policies, settings, out, Console(stderr=True))
            if json:
                typer.echo(files["report"].read_text(), nl=False)
                return
            for sheet in sheets:
                Console().print(sheet.table())
            for name, path in files.items():
                Console().print(f"{name}: {path}", highlight=False, soft_wrap=True)
            return
        options = Options(out=out, branch=branch, jobs=jobs, threads=threads, average=average, rounds=rounds, html=html)
        outcome = Comparison(policies, seeds_of(seeds), settings, options).run(Console(stderr=True))
    if json:
        from json import dumps

        typer.echo(dumps(outcome.to_dict(), indent=2, allow_nan=False))
    elif outcome.rows:
        console = Console()
        console.print(table(outcome.rows, outcome.title))
        if len(order.ordered(outcome.rows)) > 1:
            console.print(order.table(outcome.rows))
        for name, path in outcome.files.items():
            console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
    for failure in outcome.failures:
        typer.echo(f"metis: {failure.label} failed: {failure.reason}", err=True)
    if outcome.signal is not None:
        typer.echo(f"metis: stopped, and what was done is saved. To go on:\n  {shlex.join(sys.argv)}", err=True)
        raise typer.Exit(128 + outcome.signal)
    if outcome.failures:
        raise typer.Exit(1)


def seeds_of(text: str) -> list[int]:
    """``3`` is seeds 0, 1, 2; ``0,2,5`` are these; ``2,`` is seed 2."""
    from metis_compile.train.errors import TrainError

    try:
        found = [int(part) for part in text.split(",") if part.strip()] if "," in text else list(range(int(text)))
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise TrainError(f"seeds must be a number above 0, or seeds with commas between them, got {text!r}")
    return found
