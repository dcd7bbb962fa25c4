"""What a policy costs, and what it saves: measured, counted, and predicted."""

from __future__ import annotations

from collections.abc import Sequence

from metis_compile.cost_model.devices import DEVICES
from metis_compile.html_report.blocks import Block, Section, Table
from metis_compile.inspection.cost_table import time_text
from metis_compile.inspection.explain import Explanation
from metis_compile.inspection.table import size_text

__all__ = ["cost_section"]


def cost_section(measured: Sequence[Block], explanations: Sequence[tuple[str, Explanation]]) -> Section:
    """measured: what the command itself found. explanations: a name for each, as for `quantized_section`."""
    return Section(
        id="cost",
        title="Cost and memory",
        blocks=[*measured, *([_memory(explanations), _predicted(explanations)] if explanations else [])],
    )


def _memory(explanations: Sequence[tuple[str, Explanation]]) -> Table:
    found = []
    for name, explanation in explanations:
        plain, saved = explanation.plain_saved_bytes, explanation.saved_bytes
        share = f"{100 * (saved / plain - 1):+.1f} %" if plain else "-"
        found.append((name, size_text(plain), size_text(saved), share))
    return Table(
        title="Saved for backward, counted in the graphs",
        headings=("", "unquantized", "quantized", "change"),
        rows=found,
        note="What one forward keeps for its backward, parameters not counted.",
    )


def _predicted(explanations: Sequence[tuple[str, Explanation]]) -> Table:
    found = []
    for name, explanation in explanations:
        for device in DEVICES:
            predicted = explanation.cost(device)
            small = sum(site.too_small for site in predicted.sites)
            found.append(
                (
                    name,
                    device,
                    f"{time_text(predicted.plain_seconds)} in {predicted.baseline}",
                    time_text(predicted.seconds),
                    f"{predicted.ratio:.2f}x",
                    f"{small} of {len(predicted.sites)}",
                )
            )
    return Table(
        title="Predicted forward and backward",
        headings=("", "device", "unquantized", "quantized", "ratio", "products that lose"),
        rows=found,
        texts=(0, 1),
        note="By a roofline over each kernel's operations and bytes, for a model and batch of this size; metis itself "
        "does not run on FP4 tensor cores yet. A product loses where it takes longer quantized.",
    )
