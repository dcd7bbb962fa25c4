"""A rewritten graph with its quantization taken out: what is left must give what the graph gave before."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE

# Float32 sums of terms that cancel: what is split off, and taken from the residual, can be ten times the result.
ROUNDING = 1e-5


def without_quantization(gm: fx.GraphModule) -> fx.GraphModule:
    """The same graph with every dequantize replaced by what was quantized."""
    remove_quantization(gm.graph)
    gm.recompile()
    return gm


def remove_quantization(graph: fx.Graph) -> None:
    for node in graph.find_nodes(op="call_function", target=DEQUANTIZE):
        source: Any = node.args[0][0].args[0].args[0]
        with graph.inserting_before(node):
            read = graph.call_function(torch.ops.prims.convert_element_type.default, (source, torch.float32))
        read.meta = dict(node.meta)
        node.replace_all_uses_with(read)
    graph.eliminate_dead_code()
    assert not graph.find_nodes(op="call_function", target=QUANTIZE)
