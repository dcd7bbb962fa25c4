"""A comparison's numbers: each arm's gap to full precision, from the same seeds, and what it costs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from metis_compile.compare.cost import Cost
from metis_compile.compare.record import Record
from metis_compile.compare.run_config import RunConfig
from metis_compile.measure.markdown import markdown_table
from metis_compile.train.report import finite, gap

__all__ = ["Row", "Spread", "from_json", "markdown", "summarize", "table", "to_json"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean over seeds, and the standard deviation of one seed (None for a single seed)."""

    mean: float
    deviation: float | None
    values: list[float]  # of each seed, in the row's order

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value per seed."""
        return cls(
            mean=statistics.fmean(values),
            deviation=statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None,
            values=list(values),
        )

    def percent(self) -> str:
        """For a table."""
        if not math.isfinite(self.mean):
            return "diverged"
        return f"{self.mean:+.2f} %" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm. Losses in nats per byte, gaps in percent of full precision's loss with the same seed."""

    arm: str
    seeds: list[int]
    train_loss: float  # mean over seeds of the mean of the last steps
    train_gap: Spread
    validation_loss: float
    validation_gap: Spread
    saved_ratio: float
    cost: Cost | None


def summarize(records: Sequence[Record], baselines: Sequence[Record], costs: dict[str, Cost], last: int) -> list[Row]:
    """A row for each arm in ``records``, in their order; an arm's seeds that have no baseline are left out."""
    references = {record.seed: record for record in baselines}
    rows = []
    for text in dict.fromkeys(record.arm for record in records):
        mine = sorted((r for r in records if r.arm == text and r.seed in references), key=lambda r: r.seed)
        if not mine:
            continue
        pairs = [(r, references[r.seed]) for r in mine]
        rows.append(
            Row(
                arm=RunConfig(text=text).name,
                seeds=[r.seed for r in mine],
                train_loss=statistics.fmean(r.mean_loss(last) for r in mine),
                train_gap=Spread.of([gap(r.mean_loss(last), b.mean_loss(last)) for r, b in pairs]),
                validation_loss=statistics.fmean(number(r.validation_loss) for r in mine),
                validation_gap=Spread.of([gap(number(r.validation_loss), number(b.validation_loss)) for r, b in pairs]),
                saved_ratio=mine[0].saved_bytes / references[mine[0].seed].saved_bytes,
                cost=costs.get(text),
            )
        )
    return rows


def number(value: float | None) -> float:
    return float("nan") if value is None else value


HEADINGS = ("policy", "seeds", "train gap", "validation loss", "validation gap", "step", "saved", "extra FLOPs")


def cells(row: Row) -> list[str]:
    """The row for people, under HEADINGS."""
    cost = row.cost
    return [
        row.arm,
        str(len(row.seeds)),
        row.train_gap.percent(),
        f"{row.validation_loss:.4f}",
        row.validation_gap.percent(),
        "-" if cost is None else f"{cost.step_ratio:.2f}x",
        f"{row.saved_ratio:.2f}x",
        "-" if cost is None else f"{100 * (cost.flops_ratio - 1):+.1f} %",
    ]


def table(rows: Sequence[Row], title: str) -> Table:
    """For a terminal."""
    made = Table(title=title)
    for i, heading in enumerate(HEADINGS):
        made.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows:
        made.add_row(*cells(row))
    return made


def markdown(rows: Sequence[Row], caption: str) -> str:
    """For a page of documentation."""
    return f"{caption}\n\n" + markdown_table(HEADINGS, [[f"`{row.arm}`", *cells(row)[1:]] for row in rows])


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Plain values; a number that is not finite is None."""
    return [finite(asdict(row)) for row in rows]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Row]:
    """The inverse of :func:`to_json`, but for numbers that were not finite, which are NaN.

    Raises what a missing or wrong value raises.
    """
    made = []
    for row in rows:
        spreads = {
            name: Spread(
                mean=number(row[name]["mean"]),
                deviation=row[name]["deviation"],
                values=[number(value) for value in row[name].get("values", [])],  # a report of before has none
            )
            for name in ("train_gap", "validation_gap")
        }
        losses = {name: number(row[name]) for name in ("train_loss", "validation_loss")}
        cost = None if row["cost"] is None else Cost(**row["cost"])
        made.append(Row(**(row | spreads | losses | {"cost": cost})))
    return made
