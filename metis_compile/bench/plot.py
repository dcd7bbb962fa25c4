"""What the benchmarks draw."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metis_compile.measure.ratio import Ratio

__all__ = ["bars", "grid"]


def bars(
    axes: Any,
    names: Sequence[str],
    series: Mapping[str, Sequence[float | Ratio | None]],
    *,
    unit: str,
    line: float | None,
) -> None:
    """For each name a bar of every series beside each other, with the quartiles of a Ratio; ``line`` is marked."""
    width = 0.8 / max(1, len(series))
    for i, (label, values) in enumerate(series.items()):
        places = [at + (i - (len(series) - 1) / 2) * width for at in range(len(names))]
        heights = [v.median if isinstance(v, Ratio) else v or 0.0 for v in values]
        spreads = [(v.median - v.low, v.high - v.median) if isinstance(v, Ratio) else (0.0, 0.0) for v in values]
        errors = [list(side) for side in zip(*spreads, strict=True)] if any(map(any, spreads)) else None
        axes.bar(places, heights, width * 0.92, label=label, yerr=errors, capsize=2)
    if line is not None:
        axes.axhline(line, color="black", linewidth=0.7)
    axes.set_xticks(range(len(names)), names, rotation=20 if len(names) > 3 else 0)
    axes.set_ylabel(unit)
    if len(series) > 1:
        axes.legend(fontsize="small")


def grid(figure: Any, columns: Mapping[str, Sequence[int]], rows: Sequence[str], value: Callable[..., Any]) -> None:
    """A panel for each row (what is measured) and column (an axis of size, with its points).

    value: of (row, column, point), a mapping from a line's label to a number or None.
    """
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharey="row")
    for i, row in enumerate(rows):
        for j, (column, points) in enumerate(columns.items()):
            axes = panels[i][j]
            found = [value(row, column, point) for point in points]
            for label in dict.fromkeys(name for at in found for name in at):
                pairs = [(p, at[label]) for p, at in zip(points, found, strict=True) if at.get(label) is not None]
                axes.plot([p for p, _ in pairs], [v for _, v in pairs], "o-", markersize=3, label=label)
            axes.axhline(1, color="black", linewidth=0.5)
            axes.set_xscale("log", base=2)
            axes.set_xticks(points, [str(p) for p in points])
            if i == len(rows) - 1:
                axes.set_xlabel(column)
            if j == 0:
                axes.set_ylabel(row)
    panels[0][0].legend(fontsize="x-small")
