"""The errors of products as a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metis_compile.compare.gemm import PRODUCTS, GemmError
from metis_compile.compare.gemm_summary import by_gemm, by_operand
from metis_compile.train.errors import TrainError

__all__ = ["draw", "figure_of"]

MARKS = {"activation": ("^", "C0"), "weight": ("s", "C1"), "gradient": ("v", "C2")}  # of operands alone


def draw(errors: Mapping[str, Sequence[GemmError]], path: Path) -> None:
    """Write the errors by policy to ``path`` (PNG). Raises TrainError without matplotlib."""
    figure_of(errors).savefig(path, dpi=120, format="png")


def figure_of(errors: Mapping[str, Sequence[GemmError]]) -> Any:
    """A panel for each product, a line for each policy: all layers, their mean, and the mean for each operand alone."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        raise TrainError("plots need matplotlib: pip install 'metis-compile[train]'") from None

    figure = Figure(figsize=(12, 1.8 + 0.35 * len(errors)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PRODUCTS), sharex=True, sharey=True)
    for axes, gemm in zip(panels, PRODUCTS, strict=True):
        for at, found in enumerate(errors.values()):
            layers = [e.error for e in found if e.gemm == gemm and e.error is not None]
            axes.plot(layers, [at] * len(layers), "|", color="gray", alpha=0.6, label="a layer")
            if layers:
                axes.plot([by_gemm(found)[gemm]], [at], "o", color="black", label="mean")
            for role, value in ((r, v) for (of, r), v in by_operand(found).items() if of == gemm):
                mark, color = MARKS[role]
                axes.plot([value], [at], mark, color=color, markersize=5, label=f"mean, {role} alone")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"relative error of {gemm}")
        axes.grid(axis="x", linewidth=0.3)
    panels[0].set_yticks(range(len(errors)), list(errors))
    panels[0].invert_yaxis()
    labels = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    if labels:
        figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=len(labels), fontsize="small")
    return figure
