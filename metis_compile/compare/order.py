"""The arms by their gap, each tested against the one before it: an order that says where it is a tie."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from rich.table import Table

from metis_compile.compare.paired import Difference, half_width, holm, paired
from metis_compile.compare.run_config import BASELINE, REDRAWN, RunConfig
from metis_compile.compare.summary import Row, Spread
from metis_compile.measure.markdown import markdown_table
from metis_compile.train.report import finite

__all__ = ["chance", "markdown", "neighbours", "ordered", "table", "to_json"]

HEADINGS = ("policy", "seeds", "runs", "train gap", "validation gap", "behind the one above", "p", "")
FIRST_HEADINGS = ("less {}", "p", "")
CHANCE_HEADINGS = ("run twice", "seeds", "train", "validation", "one seed's deviation")


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The policies by their validation gap, least first, and those that diverged last; the baseline leads.

    What is the same policy with other weights at the start or other random numbers has no place of its own.
    """
    policies = [pooled(row, rows) for row in rows if not RunConfig(text=row.arm).is_chance]
    return sorted(policies, key=lambda row: (row.arm != BASELINE, key(row)))


def pooled(row: Row, rows: Sequence[Row]) -> Row:
    """The row with, for each of its seeds, the mean gap of the draws that there are: its own, and ``+redrawn``'s."""
    draws = [row, *again(row, rows)]
    spreads = {}
    for of in ("train_gap", "validation_gap"):
        gaps = [by_seed(draw, of) for draw in draws]
        spreads[of] = Spread.of([statistics.fmean(g[seed] for g in gaps if seed in g) for seed in row.seeds])
    return replace(row, train_gap=spreads["train_gap"], validation_gap=spreads["validation_gap"])


def again(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The rows of the same policy with other random numbers."""
    return [other for other in rows if other.arm == f"{row.arm}+{REDRAWN}"]


def key(row: Row) -> float:
    mean = row.validation_gap.mean
    return mean if math.isfinite(mean) else math.inf


def neighbours(rows: Sequence[Row]) -> list[Difference]:
    """Each policy of :func:`ordered` after the first less the one before it, of those with seeds in common."""
    places = ordered(rows)
    pairs = [(b, a) for a, b in pairwise(places) if set(a.seeds) & set(b.seeds)]
    return holm([paired(mine.arm, by_seed(mine), base.arm, by_seed(base)) for mine, base in pairs])


def first(rows: Sequence[Row]) -> str | None:
    """The policy that was named first, the baseline apart: what all others are tested against too."""
    return next((row.arm for row in rows if row.arm != BASELINE and not RunConfig(text=row.arm).is_chance), None)


def from_first(rows: Sequence[Row]) -> list[Difference]:
    """Each policy of :func:`ordered` less the first one named, of those with seeds in common; not the baseline."""
    places = {row.arm: row for row in ordered(rows)}
    base = places.get(first(rows) or "")
    if base is None:
        return []
    others = [
        row for row in places.values() if row.arm not in (BASELINE, base.arm) and set(row.seeds) & set(base.seeds)
    ]
    return holm([paired(row.arm, by_seed(row), base.arm, by_seed(base)) for row in others])


def chance(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Arms that differ from another one here by chance alone, and that one: other random numbers, other weights."""
    there = {row.arm: row for row in rows}
    found = []
    for row in rows:
        arm = RunConfig(text=row.arm)
        base = there.get(arm.policy)
        if base is not None and arm.is_chance and set(row.seeds) & set(base.seeds):
            found.append((row, base))
    return found


def by_seed(row: Row, of: str = "validation_gap") -> dict[int, float]:
    spread: Spread = getattr(row, of)
    return dict(zip(row.seeds, spread.values, strict=True))


def headings(rows: Sequence[Row]) -> list[str]:
    """Of the columns; three more where there are policies to test against the first one."""
    return [*HEADINGS, *(text.format(first(rows)) for text in FIRST_HEADINGS if from_first(rows))]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Lines under the headings."""
    behind = {difference.arm: difference for difference in neighbours(rows)}
    off = {difference.arm: difference for difference in from_first(rows)}
    made = []
    for row in ordered(rows):
        gaps = [interval(getattr(row, of)) for of in ("train_gap", "validation_gap")]
        difference = behind.get(row.arm)
        runs = len(row.seeds) + sum(len(set(row.seeds) & set(other.seeds)) for other in again(row, rows))
        tests = [*verdict(difference), *(verdict(off.get(row.arm)) if off else ())]
        made.append([row.arm, str(len(row.seeds)), str(runs), *gaps, *tests])
    return made


def verdict(difference: Difference | None) -> tuple[str, str, str]:
    if difference is None:
        return "-", "-", ""
    width = difference.half_width
    text = f"{difference.mean:+.2f}" + ("" if width is None else f" ± {width:.2f}")
    if difference.corrected is None:
        return text, "-", "not tested"
    p = "< 0.001" if difference.corrected < 0.001 else f"{difference.corrected:.3f}"
    return text, p, ("behind" if difference.mean > 0 else "ahead") if difference.significant else "tie"


def interval(spread: Spread) -> str:
    """Mean and the half width of its 95 % confidence interval."""
    if not math.isfinite(spread.mean):
        return "diverged"
    width = half_width(spread.values)
    return f"{spread.mean:+.2f} %" + ("" if width is None else f" ± {width:.2f}")


def chance_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Lines under CHANCE_HEADINGS."""
    made = []
    for row, base in chance(rows):
        train, validation = (
            paired(row.arm, by_seed(row, of), base.arm, by_seed(base, of)) for of in ("train_gap", "validation_gap")
        )
        mine, theirs = by_seed(row), by_seed(base)
        differences = [mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys()]
        # Of two runs each of which strays by itself, but for a change of full precision's start.
        deviation = math.sqrt(sum(d * d for d in differences) / len(differences) / 2)
        texts = [
            f"{d.mean:+.2f}" + ("" if d.half_width is None else f" ± {d.half_width:.2f}") for d in (train, validation)
        ]
        made.append([f"{row.arm} less {base.arm}", str(train.seeds), *texts, f"{deviation:.2f}"])
    return made


def table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    made = Table(title=CAPTION)
    for i, heading in enumerate(headings(rows)):
        made.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for line in cells(rows):
        made.add_row(*line)
    return made


CAPTION = (
    "by validation gap; gaps: mean over seeds, of all runs of a seed, ± half of the 95 % interval (t); each against "
    "the one above and against the first one named, paired by seed: t-test, p corrected for the column (Holm), 0.05 or "
    "more is a tie"
)


def markdown(rows: Sequence[Row], title: str) -> str:
    """For a page of documentation."""
    text = f"{title}; {CAPTION}\n\n" + markdown_table(headings(rows), [[f"`{a}`", *rest] for a, *rest in cells(rows)])
    lines = chance_cells(rows)
    if lines:
        text += "\nChance, in points of the gap:\n\n" + markdown_table(CHANCE_HEADINGS, lines)
    return text


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Plain values."""
    return {
        "order": [row.arm for row in ordered(rows)],
        "neighbours": [plain(d) for d in neighbours(rows)],
        "from_first": [plain(d) for d in from_first(rows)],
    }


def plain(difference: Difference) -> Any:
    return finite(vars(difference) | {"significant": difference.significant})
