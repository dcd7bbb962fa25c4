"""The ``metis`` command and its subcommands, one file each; what a command runs is imported when it runs."""

from typing import Annotated

import typer

from metis_compile.cli.bench import bench
from metis_compile.cli.blame import blame
from metis_compile.cli.calibrate import calibrate
from metis_compile.cli.compare import compare
from metis_compile.cli.diff import diff
from metis_compile.cli.explain import explain
from metis_compile.cli.export import export
from metis_compile.cli.report import report
from metis_compile.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    name="metis",
    help="Train unmodified PyTorch models in FP4 and FP8 through torch.compile.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    if wanted:
        from metis_compile import __version__

        typer.echo(f"metis {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train unmodified PyTorch models in FP4 and FP8 through torch.compile."""


app.command()(train)
app.command()(explain)
app.command()(blame)
app.command()(calibrate)
app.command()(compare)
app.command()(diff)
app.command()(report)
app.command()(export)
app.add_typer(bench)
