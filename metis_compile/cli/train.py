"""``metis train``: the main job."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metis_compile.cli.errors import user_errors
from metis_compile.defaults import DEFAULT_POLICY

if TYPE_CHECKING:
    from metis_compile.train.loop import Interrupted
    from metis_compile.train.report import Report

__all__ = ["train"]

# Settings default to None here: a resumed run takes its checkpoint's, a new one those of the class Settings.
SIZE = "Size of the model and its batches"
RATE = "Optimizer and what is validated"


def train(
    policy: Annotated[
        str | None,
        typer.Option(help="A preset's name, or the file of a policy or a schedule.", show_default=DEFAULT_POLICY),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="300")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, batches and stochastic rounding.", show_default="0")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, the plot and the numbers.")] = Path(
        "runs/train"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:N or auto.", show_default="auto: cuda if there is one"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="What full precision computes in: float32, or bfloat16 by autocast.",
            show_default="float32 on cpu, bfloat16 on cuda",
        ),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's, at its highest.", show_default="0.001")] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=RATE,
            help="Steps in which the learning rate rises.",
            show_default="20, or a fifth of --steps if that is less",
        ),
    ] = None,
    final_rate: Annotated[
        float | None,
        typer.Option(rich_help_panel=RATE, help="Share of the learning rate left at the end.", show_default="0.1"),
    ] = None,
    clip: Annotated[
        float | None, typer.Option(rich_help_panel=RATE, help="Largest norm of the gradients.", show_default="1.0")
    ] = None,
    average_weights: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=RATE,
            help="Validate the mean of the weights over this share of the steps, at the end.",
            show_default="the last weights",
        ),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=RATE,
            help="Validate a moving average of the weights of this decay.",
            show_default="the last weights",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="A file to train on.", show_default="Python's standard library"),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    average: Annotated[int, typer.Option(help="Last steps in the training loss of the table.")] = 50,
    html: Annotated[Path | None, typer.Option(help="Write the report to this file too, a page of HTML.")] = None,
    monitor: Annotated[
        Path | None,
        typer.Option(help="File for statistics of the policy's operands, JSON lines that metis diff reads."),
    ] = None,
    monitor_every: Annotated[int, typer.Option(help="Steps between those that --monitor looks at.")] = 50,
    model: Annotated[
        str | None,
        typer.Option(rich_help_panel=SIZE, help="gpt, or llama: that of transformers.", show_default="gpt"),
    ] = None,
    width: Annotated[int | None, typer.Option(rich_help_panel=SIZE, help="Features.", show_default="256")] = None,
    layers: Annotated[int | None, typer.Option(rich_help_panel=SIZE, help="Blocks.", show_default="4")] = None,
    heads: Annotated[int | None, typer.Option(rich_help_panel=SIZE, help="Attention heads.", show_default="4")] = None,
    context: Annotated[
        int | None, typer.Option(rich_help_panel=SIZE, help="Bytes in a sequence.", show_default="256")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(rich_help_panel=SIZE, help="Sequences in a step.", show_default="8")
    ] = None,
) -> None:
    """Train a small GPT in full precision and by a policy, side by side, and compare them."""
    given: dict[str, Any] = {
        "policy": policy,
        "steps": steps,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "final_rate": final_rate,
        "clip": clip,
        "average_weights": average_weights,
        "ema": ema,
        "text": text,
        "model": model,
        "width": width,
        "layers": layers,
        "heads": heads,
        "context": context,
        "batch": batch,
    }
    given = {name: value for name, value in given.items() if value is not None}

    from rich.console import Console

    from metis_compile.html_report import ReportError
    from metis_compile.policy import PolicyError
    from metis_compile.train.checkpoint import read_settings
    from metis_compile.train.errors import TrainError
    from metis_compile.train.loop import Interrupted, Options, run
    from metis_compile.train.settings import Settings, resolve_device

    with user_errors(TrainError, PolicyError, ReportError):
        values = {name: getattr(read_settings(out), name) for name in Settings.names()} if resume else {}
        values |= given
        values["device"] = resolve_device(values.get("device", "auto"))
        values.setdefault("dtype", "float32" if values["device"] == "cpu" else "bfloat16")
        settings = Settings(**values)
        # A path that a checkpoint gives is not the user's: what it names is not imported.
        trust = not resume or policy is not None
        options = Options(
            out=out,
            resume=resume,
            checkpoint_every=checkpoint_every,
            average=average,
            trust=trust,
            monitor=monitor,
            monitor_every=monitor_every,
            html=html,
        )
        outcome = run(settings, options, console=Console(stderr=True))
    for problem in [outcome.unsaved] if isinstance(outcome, Interrupted) else outcome.unwritten:
        if problem is not None:
            typer.echo(f"metis: {problem}", err=True)
    if isinstance(outcome, Interrupted):
        typer.echo(how_to_go_on(outcome, settings.steps, out), err=True)
        raise typer.Exit(128 + outcome.signal)
    show(outcome, as_json=json)
    if outcome.unwritten:
        raise typer.Exit(2)


def how_to_go_on(outcome: "Interrupted", steps: int, out: Path) -> str:
    """What an interrupted run tells its user."""
    if outcome.saved is None:
        return "metis: stopped before the first step was saved; the same command starts again"
    command = [sys.argv[0]]
    if Path(sys.argv[0]).name == "__main__.py":
        command = [sys.executable, "-m", "metis_compile.cli"]
    command += ["train", "--resume", "--out", str(out)]
    return f"metis: stopped; step {outcome.saved}/{steps} is saved. To go on:\n  {shlex.join(command)}"


def show(report: "Report", *, as_json: bool) -> None:
    """Print the comparison on stdout."""
    if as_json:
        from json import dumps

        typer.echo(dumps(report.to_dict(), indent=2, allow_nan=False))
        return
    from rich.console import Console

    console = Console()
    console.print(report.table())
    for name, path in report.files.items():
        if not path.exists():
            continue
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
