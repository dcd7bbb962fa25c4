"""How a `Blame` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metis_compile.sensitivity.effects import Blame


def table(blame: Blame) -> Iterator[Any]:
    """A row for each share, by what it alone does to the loss."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = f"policy {blame.policy}, {blame.batches} batches: loss {blame.loss:.5g} in high precision, "
    title += f"{percent(blame.total.loss, blame.loss)} with all of it; gradients {100 * blame.total.gradient:.2f} % off"
    printed = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("module", "gemm", "operand", "treatment"):
        printed.add_column(name, overflow="fold")
    for name in ("loss alone", "loss without", "gradient alone", "gradient without"):
        printed.add_column(name, justify="right")
    for share in blame.ranked():
        printed.add_row(
            Text(share.module or "<model>"),
            share.gemm,
            share.operand,
            Text(", ".join(dict.fromkeys(text.split(", ")[0] for text in share.treatments))),
            percent(share.alone.loss, blame.loss),
            percent(share.without.loss, blame.loss),
            f"{100 * share.alone.gradient:.2f} %",
            f"{100 * share.without.gradient:.2f} %",
        )
    yield printed
    legend = (
        "alone: it alone is quantized; without: all but it; loss: change of the mean loss; gradient: relative error "
    )
    yield Text(legend + "of all parameters' gradients together; treatment: without its split, if any")


def percent(change: float, of: float) -> str:
    """A change of a loss, in percent of it."""
    return f"{100 * change / of:+.3f} %" if of else f"{change:+.3g}"
