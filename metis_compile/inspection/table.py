"""How an explanation prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metis_compile.inspection.explain import Explanation


def by_product(explanation: Explanation) -> Iterator[Any]:
    """A row for each product."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=title(explanation), title_justify="left")
    for name in ("module", "source", "gemm", "m x n x k", "operands", "rule, or why it was left", "saved"):
        table.add_column(name, overflow="fold")
    for site in explanation.sites:
        size = f"{site.m} x {site.n} x {site.k}"
        table.add_row(
            site.module or f"({site.op})",
            site.source,
            site.gemm,
            size if site.batch == 1 else f"{site.batch} x {size}",
            "\n".join(f"{role}: {text}" for role, text in site.treatment.items()) if site.reason is None else "",
            site.reason or site.rule,
            f"{site.saved_bytes:,} bytes" if site.saved else "",
        )
    yield table
    yield from footer(explanation)


by_module = by_product


def title(explanation: Explanation) -> str:
    done = sum(s.reason is None for s in explanation.sites)
    graphs = "1 graph" if explanation.graphs == 1 else f"{explanation.graphs} graphs"
    return f"policy {explanation.policy}: {done} of {len(explanation.sites)} products rewritten, in {graphs}"


def footer(explanation: Explanation) -> Iterator[str]:
    yield f"saved for backward: {explanation.saved_bytes:,} bytes, parameters not counted"
    for rule in explanation.unused_rules:
        yield f"matched nothing: {rule}"
