"""``metis report``: the page of HTML of a run that is done."""

from pathlib import Path
from typing import Annotated

import typer

from metis_compile.cli.errors import user_errors

__all__ = ["report"]


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of metis train or metis compare, or its JSON.")
    ],
    html: Annotated[Path, typer.Option(help="The file to write.")],
    statistics: Annotated[Path | None, typer.Option(help="A monitor's JSON lines.")] = None,
    blame: Annotated[Path | None, typer.Option(help="What metis blame --json printed.")] = None,
) -> None:
    """Write the report of a finished run as one file of HTML, which needs no network."""
    from metis_compile.compare.stored import stored_comparison
    from metis_compile.html_report import ReportError, check, read_blame, read_statistics, write
    from metis_compile.policy import PolicyError
    from metis_compile.train.errors import TrainError
    from metis_compile.train.stored import stored_run

    with user_errors(ReportError, TrainError, PolicyError):
        check(html)
        records = [] if statistics is None else read_statistics(statistics)
        blamed = None if blame is None else read_blame(blame)
        made = stored_comparison if comparison(run) else stored_run
        write(made(run, statistics=records, blame=blamed), html)
    typer.echo(f"html: {html}")


def comparison(run: Path) -> bool:
    """Whether it is that of ``metis compare``."""
    return (run / "compare.json").exists() if run.is_dir() else run.name == "compare.json"
