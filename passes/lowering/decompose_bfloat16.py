"""Factors rounded to bfloat16, written out by bits: a cast would be dropped where the result is cast back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from metis_compile.conditioning.factors import round_to_bfloat16
from metis_compile.ops.buffers import TO_BFLOAT16
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.inline import Inliner


def decompose_bfloat16(context: PassContext) -> PassResult:
    """Traces `metis::to_bfloat16` where no C++ kernel will read its result: those on a CPU with kernels stay."""
    by_kernels = context.calls_cpu_kernels
    leave = (lambda node: node.meta["val"].device.type == "cpu") if by_kernels else (lambda node: False)
    return PassResult(changed=write_casts_by_bits(context.graph, leave))


def write_casts_by_bits(graph: fx.Graph, leave: Callable[[fx.Node], bool] = lambda node: False) -> int:
    """Traces every `metis::to_bfloat16` in its place, but for those to `leave`; returns how many."""
    nodes = [n for n in graph.find_nodes(op="call_function", target=TO_BFLOAT16) if not leave(n)]
    if not nodes:
        return 0
    inliner = Inliner(GraphBuilder(graph))
    for node in nodes:
        with inliner.builder.at(node, like=node):
            (result,) = inliner.insert("bfloat16", _rounded, node.args, node.name)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(nodes)


def _rounded(x: torch.Tensor) -> list[torch.Tensor]:
    return [round_to_bfloat16(x).to(torch.bfloat16)]
