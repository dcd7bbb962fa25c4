"""``metis explain``: which rule decided what for each matmul of a model."""

from typing import Annotated

import typer

from metis_compile.cli.errors import user_errors
from metis_compile.cli.target import Target, call, find_function, model_and_inputs
from metis_compile.defaults import DEFAULT_POLICY

__all__ = ["explain"]


def explain(
    target: Target,
    policy: Annotated[str, typer.Option(help="A preset's name or a policy file.")] = DEFAULT_POLICY,
    full: Annotated[bool, typer.Option("--full", help="A row for each product, like modules one by one.")] = False,
    device: Annotated[
        str | None,
        typer.Option(help="Predict what a step costs there: h100, h200, b200, b300, rtx5090, or a file of a device."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Show, for each matmul of a model, how a policy treats it, which rule decided, and why."""
    with user_errors():
        function = find_function(target)

    import metis_compile
    from metis_compile.cost_model import DeviceError, find_device

    with user_errors(metis_compile.PolicyError, DeviceError):
        loaded = metis_compile.Policy.load(policy)
        found = None if device is None else find_device(device)
        model, args, kwargs = model_and_inputs(target, call(target, function))
    explanation = metis_compile.explain(model, *args, policy=loaded, full=full, device=found, **kwargs)
    if json:
        from json import dumps

        typer.echo(dumps(explanation.to_dict(), indent=2))
    else:
        print(explanation)
