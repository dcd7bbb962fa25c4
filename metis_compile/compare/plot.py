"""The gap to full precision over the steps, and against what a step costs, as PNGs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metis_compile.compare.record import Record
from metis_compile.compare.run_config import RunConfig
from metis_compile.compare.summary import Row
from metis_compile.train.errors import TrainError
from metis_compile.train.plot import running_mean

__all__ = ["draw", "draw_cost"]


def draw(records: Sequence[Record], baselines: Sequence[Record], path: Path) -> None:
    """Write each arm's gap, the mean over its seeds with the range between them, to ``path`` (PNG)."""
    references = {record.seed: record for record in baselines}
    figure, axes = _empty()
    window = 1
    for i, text in enumerate(dict.fromkeys(r.arm for r in records)):
        curves = []
        for record in records:
            if record.arm == text and record.seed in references:
                window = max(1, len(record.losses) // 12)
                curves.append(gaps(record, references[record.seed], window))
        if not curves or RunConfig(text=text).is_baseline:
            continue
        steps = range(window, len(curves[0]) + 1)
        mean = [sum(at) / len(at) for at in zip(*curves, strict=True)]
        style = ("-", "--", ":")[i // 10 % 3]
        (line,) = axes.plot(steps, mean[window - 1 :], style, label=RunConfig(text=text).name, color=f"C{i % 10}")
        low, high = ([f(at) for at in zip(*curves, strict=True)][window - 1 :] for f in (min, max))
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_ylabel("training loss over full precision's, same seed, %")
    axes.set_xlabel(f"step (mean of {window})")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=120, format="png")


def draw_cost(rows: Sequence[Row], path: Path) -> None:
    """Write the arms whose step was measured to ``path`` (PNG)."""
    cost_figure(rows).savefig(path, dpi=120, format="png")


def cost_figure(rows: Sequence[Row]) -> Any:
    """Training gap, with a deviation each way, over step time, with its quartiles; a point for each arm.

    Gaps are logarithmic from 1 % on, so that one policy that fails does not hide how the others differ.
    """
    figure, axes = _empty()
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:g}")
    for i, row in enumerate(r for r in rows if r.cost is not None and not RunConfig(text=r.arm).is_baseline):
        assert row.cost is not None
        low, high = row.cost.step_ratio_quartiles
        at, gap = row.cost.step_ratio, row.train_gap
        across = [[max(at - low, 0.0)], [max(high - at, 0.0)]]
        axes.errorbar(at, gap.mean, gap.deviation or 0.0, across, fmt="o", color=f"C{i % 10}", capsize=2)
        axes.annotate(row.arm, (at, gap.mean), (6, 4), textcoords="offset points", fontsize="small")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_ylabel("training loss over full precision's, same seed, %")
    axes.set_xlabel("step over full precision's")
    return figure


def _empty() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise TrainError("plots need matplotlib: pip install 'metis-compile[train]'") from None

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def gaps(record: Record, baseline: Record, window: int) -> list[float]:
    """Percent, step by step, between running means."""
    mine, theirs = (
        running_mean([float("nan") if x is None else x for x in r.losses], window) for r in (record, baseline)
    )
    return [100 * (a - b) / b for a, b in zip(mine, theirs, strict=True)]
