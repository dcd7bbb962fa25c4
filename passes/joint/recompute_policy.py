"""Steer what crosses from forward to backward: packed codes and scales, never dequantized values.

Most of it needs no steering. A quantization that only backward reads is free to lie on either side of the cut, and the
min-cut partitioner saves the smallest thing: the codes, or nothing where their source is kept anyway (a parameter, or
an activation that another operator saves). What it can't know is that a value read on both sides is cheap to decode.
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from metis_compile.ops.buffers import TO_BFLOAT16
from metis_compile.ops.quantization import DEQUANTIZE
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.sites import Site
from metis_compile.passes.graph.views import CASTS

aten = torch.ops.aten


def prefer_recompute(context: PassContext) -> PassResult:
    """Marks what backward decodes again although forward has decoded it already."""
    return PassResult(changed=len(mark_recomputed([site for site in context.sites if site.reason is None])))


def mark_recomputed(sites: list[Site]) -> list[fx.Node]:
    """Marks what backward decodes again although forward has decoded it already; returns the marked nodes.

    Factors in bfloat16 are cast again, and put side by side. A weight that both directions read in one quantization is
    quantized again from the parameter: that costs no memory.
    """
    readers: dict[fx.Node, set[bool]] = {}
    weights: set[fx.Node] = set()
    for site in sites:
        for operand in site.operands:
            if operand.quantized is not None:
                readers.setdefault(operand.quantized, set()).add(site.gemm == "fprop")
                if operand.role == "weight":
                    weights.add(operand.quantized)
    marked = []
    for quantized, directions in readers.items():
        if len(directions) < 2:
            continue
        parts = [u for u in quantized.users if u.target is operator.getitem]
        marked += [u for p in parts for u in p.users if u.target is DEQUANTIZE]
        if quantized in weights:  # drawn again from the same seed where it rounds at random
            marked += [quantized, *parts]
    for graph in {site.node.graph for site in sites}:
        for factor in graph.find_nodes(op="call_function", target=TO_BFLOAT16):
            casts = [user for user in factor.users if user.target in CASTS]
            marked += [*casts, *(u for cast in casts for u in cast.users if u.target is aten.cat.default)]
    for node in marked:
        node.meta.setdefault("recompute", CheckpointPolicy.PREFER_RECOMPUTE)
    return marked
