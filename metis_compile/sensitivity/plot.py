"""A `Blame` as a heat map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metis_compile.sensitivity.effects import Blame


def draw(blame: Blame, path: Path, by: str) -> None:
    """Writes it to a PNG file. Raises ImportError without matplotlib."""
    figure_of(blame, by).savefig(path, dpi=120, format="png")


def figure_of(blame: Blame, by: str) -> Any:
    """Modules down, operands of products across; what each alone does to the loss or the gradient, in percent."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'metis-compile[train]'") from None

    modules = list(dict.fromkeys(share.module for share in blame.shares))
    columns = sorted({(share.gemm, share.operand) for share in blame.shares}, key=_order)
    values = [[float("nan")] * len(columns) for _ in modules]
    for share in blame.shares:
        effect = 100 * share.alone.loss / blame.loss if by == "loss" else 100 * share.alone.gradient
        values[modules.index(share.module)][columns.index((share.gemm, share.operand))] = effect
    figure = Figure(figsize=(3.5 + 1.1 * len(columns), 1.5 + 0.28 * len(modules)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    largest = max((abs(v) for row in values for v in row if v == v), default=1.0)
    limits: dict[str, Any] = {"vmin": 0, "cmap": "Reds"}
    if by == "loss":
        limits = {"vmin": -largest, "vmax": largest, "cmap": "RdBu_r"}
    image = axes.imshow(values, aspect="auto", **limits)
    axes.set_xticks(range(len(columns)), [f"{gemm}\n{operand}" for gemm, operand in columns], fontsize="small")
    axes.set_yticks(range(len(modules)), [module or "<model>" for module in modules], fontsize="small")
    what = "change of the loss" if by == "loss" else "error of the gradients"
    figure.colorbar(image, label=f"{what}, each alone, %")
    axes.set_title(f"policy {blame.policy}, {blame.batches} batches", fontsize="medium")
    return figure


def _order(column: tuple[str, str]) -> tuple[int, str]:
    return ("fprop", "dgrad", "wgrad").index(column[0]), column[1]
