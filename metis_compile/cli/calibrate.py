"""``metis calibrate``: a policy within a budget of cost or of error."""

from pathlib import Path
from typing import Annotated, Any

import typer

from metis_compile.cli.blame import loss_and_batches
from metis_compile.cli.errors import UserError, user_errors
from metis_compile.cli.target import call, find_function

__all__ = ["calibrate"]


def calibrate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function that returns (loss, batches): loss(*batch) is a scalar. MODULE may be a .py file.",
        ),
    ],
    device: Annotated[
        str, typer.Option(help="What the cost is of: h100, h200, b200, b300, rtx5090, or a file of a device.")
    ] = "b200",
    budget_cost: Annotated[
        float | None, typer.Option(help="A step's time over that without quantization: err least within it.")
    ] = None,
    budget_error: Annotated[
        float | None, typer.Option(help="The relative error of what --error names: cost least within it.")
    ] = None,
    error: Annotated[str, typer.Option(help="What must err little: loss or gradient.")] = "loss",
    candidates: Annotated[
        str, typer.Option(help="Presets, by commas: their recipes are what an operand may be given.")
    ] = "mxfp8,nvfp4,best",
    by: Annotated[
        str, typer.Option(help="kind: like layers are treated alike; depth: the first and last blocks apart.")
    ] = "kind",
    out: Annotated[Path | None, typer.Option(help="Write the policy to this file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Choose a policy: the least error within a cost, or the least cost within an error."""
    from rich.console import Console
    from rich.progress import Progress

    with user_errors():
        function = find_function(target)
        for name, value, known in (("by", by, ("kind", "depth")), ("error", error, ("loss", "gradient"))):
            if value not in known:
                raise UserError(f"--{name} must be {' or '.join(known)}, got {value!r}")
        if out is not None and not out.parent.is_dir():
            raise UserError(f"--out: there is no folder {out.parent}")

    import metis_compile
    from metis_compile.cost_model import DeviceError

    choice: Any = {"error": error, "by": by}
    with user_errors(metis_compile.PolicyError, metis_compile.BlameError, metis_compile.CalibrationError, DeviceError):
        loss, batches = loss_and_batches(target, call(target, function))
        with Progress(console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task("measuring", total=None)
            found = metis_compile.calibrate(
                loss,
                batches,
                device=device,
                budget_cost=budget_cost,
                budget_error=budget_error,
                candidates=[name.strip() for name in candidates.split(",") if name.strip()],
                progress=lambda done, total: shown.update(task, completed=done, total=total),
                **choice,
            )
    if out is not None:
        out.write_text(found.to_toml())
    if json:
        from json import dumps

        typer.echo(dumps(found.to_dict(), indent=2))
    else:
        print(found)
