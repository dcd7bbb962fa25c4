"""``metis blame``: which operand of which product costs the loss."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from metis_compile.cli.errors import UserError, user_errors
from metis_compile.cli.target import call, describe, find_function
from metis_compile.defaults import DEFAULT_POLICY

__all__ = ["blame"]


def blame(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function that returns (loss, batches): loss(*batch) is a scalar. MODULE may be a .py file.",
        ),
    ],
    policy: Annotated[str, typer.Option(help="A preset's name or a policy file.")] = DEFAULT_POLICY,
    by: Annotated[
        str, typer.Option(help="module: each by itself; kind: all layers together that differ by a number.")
    ] = "module",
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a heat map to this PNG file.")] = None,
    plot_by: Annotated[str, typer.Option(help="What the heat map shows: loss or gradient.")] = "loss",
) -> None:
    """Quantize each operand of each product alone, and all but it: what does that do to loss and gradients?"""
    from rich.console import Console
    from rich.progress import Progress

    with user_errors():
        function = find_function(target)
        if plot_by not in ("loss", "gradient"):
            raise UserError(f"--plot-by must be loss or gradient, got {plot_by!r}")
        if plot is not None and not plot.parent.is_dir():
            raise UserError(f"--plot: there is no folder {plot.parent}")

    import metis_compile
    from metis_compile.sensitivity import BlameError

    with user_errors(metis_compile.PolicyError, BlameError):
        loaded = metis_compile.Policy.load(policy)
        loss, batches = loss_and_batches(target, call(target, function))
        with Progress(console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task("measuring", total=None)
            found = metis_compile.blame(
                loss,
                batches,
                policy=loaded,
                by=by_of(by),
                progress=lambda done, total: shown.update(task, completed=done, total=total),
            )
    if plot is not None:
        found.plot(plot, "gradient" if plot_by == "gradient" else "loss")
    if json:
        from json import dumps

        typer.echo(dumps(found.to_dict(), indent=2))
    else:
        print(found)


def by_of(text: str) -> Literal["module", "kind"]:
    """What `--by` says. Raises UserError."""
    if text == "module":
        return "module"
    if text == "kind":
        return "kind"
    raise UserError(f"--by must be module or kind, got {text!r}")


def loss_and_batches(target: str, returned: Any) -> tuple[Any, list[Any]]:
    """(loss, batches) from what the user's function returned. Raises UserError."""
    if isinstance(returned, tuple) and len(returned) == 2 and callable(returned[0]):
        loss, batches = returned
        if isinstance(batches, (list, tuple)):
            return loss, list(batches)
    raise UserError(f"{target} must return (loss, batches), got {describe(returned)}")
