"""Thin products on the CPU, written out for Inductor to fuse with what they are added to or taken from.

What a split takes from a matrix, and what a tail adds to a product, is U S with few columns in U. As a product it is a
pass over the whole result, which must then be read again; as a sum of outer products it is part of the pass that reads
it. On a GPU a product fuses with what is added to it as it is.
"""

from __future__ import annotations

import torch
from torch import fx

from metis_compile.compat import lowers_to_triton
from metis_compile.kernels.materialize import register_materialize
from metis_compile.ops import MATERIALIZE
from metis_compile.passes.emit import Emitter

aten = torch.ops.aten
MOST = 7  # columns of U: Inductor writes out sums of fewer than eight
LEAST = 16  # rows of U and columns of S: with less there is nothing to gain


def write_out_thin(graph: fx.Graph) -> int:
    """Writes out the thin products of tails and splits; returns how many there were."""
    nodes = [n for n in graph.find_nodes(op="call_function", target=aten.mm.default) if _is_thin(n)]
    if not nodes:
        return 0
    register_materialize()
    emitter = Emitter(graph)
    for node in nodes:
        left, right = node.args
        with emitter.at(node, like=node):
            # made once: else their rounding would be done again for every element of the result
            left, right = (emitter.call(MATERIALIZE, (factor,)) for factor in (left, right))
            terms = (
                emitter.call(aten.unsqueeze.default, (left, 2)),
                emitter.call(aten.unsqueeze.default, (right, 0)),
            )
            outer = emitter.call(aten.mul.Tensor, terms)
            result = emitter.call(aten.sum.dim_IntList, (outer, [1]), name=f"{node.name}_thin")
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(nodes)


def _is_thin(node: fx.Node) -> bool:
    if not node.meta.get("metis_tail"):
        return False
    (rows, k), columns = node.args[0].meta["val"].shape, node.meta["val"].shape[1]  # type: ignore[union-attr]
    value = node.meta["val"]
    small = any(isinstance(size, int) and size < LEAST for size in (rows, columns))
    on_cpu = value.device.type == "cpu" and not lowers_to_triton(value.device)
    return on_cpu and isinstance(k, int) and k <= MOST and not small
