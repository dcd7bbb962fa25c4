"""``metis diff``: where two runs part first."""

from pathlib import Path
from typing import Annotated

import typer

from metis_compile.cli.errors import user_errors

__all__ = ["diff"]

RUN = "A monitor's JSON lines, the report of metis train, or its folder."


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help=RUN)],
    b: Annotated[Path, typer.Argument(metavar="B", help=RUN)],
    threshold: Annotated[
        float, typer.Option(help="From what on a statistic differs: of its size, or absolute for shares.")
    ] = 0.1,
    loss_threshold: Annotated[float, typer.Option(help="From what on losses differ, of their size.")] = 0.01,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Lay two runs' statistics and losses side by side, and say where they part first."""
    from metis_compile.monitoring.difference import difference
    from metis_compile.monitoring.reading import ReadError, read_run

    with user_errors(ReadError, ValueError):
        found = difference(read_run(a), read_run(b), threshold=threshold, loss_threshold=loss_threshold)
    if json:
        from json import dumps

        typer.echo(dumps(found.to_dict(), indent=2, allow_nan=False))
        return
    from rich.console import Console

    Console(highlight=False, soft_wrap=False).print(found)
