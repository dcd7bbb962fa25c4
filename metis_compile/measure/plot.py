"""Plots as PNGs, by matplotlib, which only they need."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["check_matplotlib", "save"]


def check_matplotlib(error: type[Exception]) -> None:
    """Raises ``error`` where there is no matplotlib: call it before something is measured that is to be drawn."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise error("plots need matplotlib: pip install 'metis-compile[train]'") from None


def save(draw: Callable[[Any], None], path: Path, size: tuple[float, float] = (9, 5)) -> None:
    """Write what ``draw`` puts on a figure of so many inches to ``path``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    figure.savefig(path, dpi=120, format="png")
