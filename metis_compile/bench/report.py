"""A benchmark's numbers: a table, JSON, Markdown and a plot."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from metis_compile.bench.errors import BenchError
from metis_compile.bench.runner import Measured, Options
from metis_compile.measure.folder import writing
from metis_compile.measure.machine import machine
from metis_compile.measure.markdown import markdown_table
from metis_compile.measure.plot import save
from metis_compile.train.report import finite

__all__ = ["Report", "markdown", "write"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one benchmark found."""

    name: str  # of the files
    title: str  # over the table: what was measured, and how
    headings: Sequence[str]
    cells: Sequence[Sequence[str]]
    numbers: dict[str, Any]  # for JSON
    draw: Callable[[Any], None]  # on a matplotlib figure
    measured: Measured

    def table(self) -> Table:
        """For a terminal."""
        made = Table(title=self.title)
        for i, heading in enumerate(self.headings):
            made.add_column(heading, justify="left" if i == 0 else "right")
        for row in self.cells:
            made.add_row(*row)
        return made

    def markdown(self, options: Options) -> str:
        """For a page of documentation."""
        return markdown(self.to_dict(options), self.headings, self.cells)

    def to_dict(self, options: Options) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite is None."""
        where = machine() | {"threads": options.count}
        about = {"benchmark": self.name, "title": self.title, "machine": where, "rounds": options.rounds}
        return finite(about | self.numbers | {"failures": [f.label for f in self.measured.failures]})


def markdown(numbers: dict[str, Any], headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The table under its title and where its numbers come from, which are read from the report's JSON."""
    where = numbers["machine"]
    on = f"{where['threads']} threads of {where['gpu'] or where['processor']}, torch {where['torch']}"
    return f"{numbers['title']}; {where['date']}, {on}\n\n" + markdown_table(headings, cells)


def write(report: Report, options: Options) -> dict[str, Path]:
    """Write NAME.json, NAME.md and NAME.png to the folder; returns the paths.

    Raises BenchError if they can't be written.
    """
    files = {kind: options.out / f"{report.name}.{kind}" for kind in ("json", "md", "png")}
    with writing(options.out, BenchError):
        files["json"].write_text(json.dumps(report.to_dict(options), indent=1, allow_nan=False) + "\n")
        files["md"].write_text(report.markdown(options))
        save(report.draw, files["png"])
    return files
