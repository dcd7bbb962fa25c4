"""``metis export``: a model's rewritten graphs as MLIR."""

from pathlib import Path
from typing import Annotated

import typer

from metis_compile.cli.errors import UserError, user_errors
from metis_compile.cli.target import Target, call, find_function, model_and_inputs
from metis_compile.defaults import DEFAULT_POLICY

__all__ = ["export"]


def export(
    target: Target,
    policy: Annotated[str, typer.Option(help="A preset's name or a policy file.")] = DEFAULT_POLICY,
    dialect: Annotated[str, typer.Option(help="linalg, torch or stablehlo.")] = "linalg",
    out: Annotated[Path, typer.Option(help="Folder for forward.mlir, backward.mlir and signature.json.")] = Path(
        "runs/export"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the list.")] = False,
) -> None:
    """Write the forward and backward graphs that a policy makes of a model as MLIR, for other compilers."""
    with user_errors():
        function = find_function(target)

    import metis_compile
    from metis_compile.measure.folder import check_folder, writing

    with user_errors(metis_compile.PolicyError):
        loaded = metis_compile.Policy.load(policy)
        check_folder(out, UserError, keep=False)
        model, args, kwargs = model_and_inputs(target, call(target, function))
    with user_errors(metis_compile.ExportError):
        exported = metis_compile.export_mlir(model, *args, policy=loaded, dialect=dialect, **kwargs)
    with user_errors(), writing(out, UserError):
        files = exported.save(out)
    if json:
        from json import dumps

        typer.echo(dumps({**exported.to_dict(), "files": [str(path) for path in files]}, indent=2))
        return
    print(exported)
    for path in files:
        typer.echo(f"{path.stem}: {path}")
