"""Sums over the products of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metis_compile.inspection.explain import ExplainedSite


def flops_by_format(sites: Iterable[ExplainedSite]) -> dict[str, int]:
    """Format -> floating-point operations of the products in it, most first, "high" last.

    A product of operands of two formats counts under both names, "mxfp8 x nvfp4", one with an unquantized operand
    among them, "high x nvfp4". Products with sizes that are symbols, and those that are no matrix products, count for
    nothing.
    """
    found: dict[str, int] = {}
    for site in sites:
        name = format_of(site)
        found[name] = found.get(name, 0) + (site.flops or 0)
    ordered = sorted(found.items(), key=lambda item: (item[0] == "high", -item[1]))
    return {name: flops for name, flops in ordered if flops}


def format_of(site: ExplainedSite) -> str:
    """ "nvfp4", "high", or the names of two formats."""
    if site.reason is not None:
        return "high"
    return " x ".join(sorted({text.split(" ", 1)[0].rstrip(",") for text in site.treatment.values()}))
