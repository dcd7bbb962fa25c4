"""How a `Calibration` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metis_compile.calibration.result import Calibration, Figures


def tables(found: Calibration) -> Iterator[Any]:
    """The whole policy beside each candidate, and a row for each layer kind's product."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = f"device {found.device}, {found.batches} batches: {wanted(found.budget, found.limit, found.error)}"
    whole = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    whole.add_column("for everything")
    for name in ("cost", "loss", "gradients"):
        whole.add_column(name, justify="right")
    for name, figures in found.candidates.items():
        whole.add_row(name, *figures_of(figures))
    whole.add_row("this policy, predicted", *figures_of(found.predicted))
    whole.add_row("this policy, measured", *figures_of(found.measured))
    yield whole
    yield Text(LEGEND)

    choices = Table(box=SIMPLE_HEAD)
    for name in ("module", "gemm", "operand", "chosen"):
        choices.add_column(name, overflow="fold")
    for name in ("loss", "gradients"):
        choices.add_column(name, justify="right")
    choices.add_column("considered: loss", overflow="fold")
    last: tuple[str, str | None] | None = None
    for c in found.choices:
        layer = c.module, c.blocks
        label = (c.module or "<model>") + (f", {c.blocks}" if c.blocks else "") if layer != last else ""
        last = layer
        here = c.considered.get(c.recipe)
        others = ", ".join(f"{name} {percent(x.loss)}" for name, x in c.considered.items() if name != c.recipe)
        numbers = ("", "") if here is None else (percent(here.loss), f"{100 * here.gradient:.2f} %")
        choices.add_row(Text(label), c.gemm, c.operand, c.recipe, *numbers, others)
    yield choices


LEGEND = (
    "cost: predicted time of forward and backward, over that without quantization; loss: change of the mean loss; "
    "gradients: relative error of all of them together"
)


def wanted(budget: str, limit: float, error: str) -> str:
    """What was asked for, in words."""
    what = "the loss" if error == "loss" else "the gradients"
    if budget == "cost":
        return f"least error of {what} at a cost of {limit:g}x of unquantized or less"
    return f"least cost at an error of {what} of {100 * limit:g} % or less"


def figures_of(figures: Figures) -> tuple[str, str, str]:
    """Cost, loss and gradients as they print."""
    return f"{figures.cost:.3f}x", percent(figures.loss), f"{100 * figures.gradient:.2f} %"


def percent(change: float) -> str:
    return f"{100 * change:+.3f} %"
