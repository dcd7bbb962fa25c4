"""The products of one graph by the names of their nodes, which the forward and the backward graph keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from metis_compile.conditioning.registry import describe
from metis_compile.passes.graph.sites import Operand, Site

__all__ = ["WatchedOperand", "WatchedSite", "watched_sites"]


@dataclass(frozen=True, kw_only=True)
class WatchedOperand:
    """One matrix of a product that is quantized."""

    role: str
    side: str  # left or right
    base: str  # the tensor as it was before it was split, quantized and rearranged
    axis: int  # of base: that which is contracted
    views: tuple[fx.Node, ...]  # from base to what the product reads
    quantized: str | None  # the metis.quantize node; None where it is left in high precision
    format: str | None  # the text of its spec
    split: str | None  # how it is split
    hadamard: str | None  # the signs of its Hadamard transform


@dataclass(frozen=True, kw_only=True)
class WatchedSite:
    """One product that was rewritten."""

    module: str
    op: str
    gemm: str
    call: int  # which of the module's products of this kind it is, from 0, in the order of the forward
    product: str  # the node that multiplies
    result: str | None  # the node that has its tails too
    is_grouped: bool
    operands: tuple[WatchedOperand, ...]


def watched_sites(sites: Sequence[Site]) -> list[WatchedSite]:
    """Those of `sites` that were rewritten."""
    calls: Counter[tuple[str, str, str]] = Counter()
    numbers: dict[int, int] = {}
    found = []
    for site in sites:
        key = (site.module, site.op, site.gemm)
        call = calls[key]
        if site.seq is not None and site.gemm == "fprop":
            numbers[site.seq] = call
        elif site.seq is not None:  # backward meets the calls of a module last to first
            call = numbers.get(site.seq, call)
        calls[key] += 1
        if site.reason is None and len(site.operands) == 2:
            found.append(_watched(site, call))
    return found


def _watched(site: Site, call: int) -> WatchedSite:
    return WatchedSite(
        module=site.module,
        op=site.op,
        gemm=site.gemm,
        call=call,
        product=site.node.name,
        result=None if site.result is None else site.result.name,
        is_grouped=site.offs is not None,
        operands=tuple(_operand(operand, operand is site.lhs) for operand in site.operands),
    )


def _operand(operand: Operand, is_left: bool) -> WatchedOperand:
    quantized: Any = operand.quantized
    treatment: Any = None if operand.decision is None else operand.decision.treatment
    is_split = treatment is not None and quantized is not None and treatment.split is not None
    is_transformed = treatment is not None and quantized is not None and treatment.hadamard
    return WatchedOperand(
        role=operand.role,
        side="left" if is_left else "right",
        base=operand.base.name,
        axis=operand.axis,
        views=operand.views,
        quantized=None if quantized is None else quantized.name,
        format=None if quantized is None else str(quantized.args[1]),
        split=describe(treatment.split) if is_split else None,
        hadamard=str(treatment.hadamard) if is_transformed else None,
    )
