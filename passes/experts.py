"""Write out the operators that hide the products of a mixture's experts, so that each is seen for what it is.

transformers runs experts that are not in bfloat16 by an operator of its own, and their backward by another that makes
both gradients:

    y = grouped_mm_fallback(x, w, ends)                 ->  y   = metis.grouped_mm(x, w, ends)
    dx, dw = grouped_mm_fallback_backward(x, w, ends, g)    dx  = metis.grouped_mm(g, w^T, ends)
                                                            dw  = metis.grouped_mm(x^T, g, ends)
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from metis_compile.grouped_ops import GROUPED_MM
from metis_compile.passes.emit import Emitter
from metis_compile.passes.names import schema_name

__all__ = ["write_out_experts"]

aten = torch.ops.aten
FORWARD = "transformers::grouped_mm_fallback"
BACKWARD = "transformers::grouped_mm_fallback_backward"


def write_out_experts(graph: fx.Graph) -> int:
    """Replaces these operators in `graph`; returns how many there were."""
    nodes = [node for node in graph.nodes if schema_name(node) in (FORWARD, BACKWARD)]
    emitter = Emitter(graph) if nodes else None
    for node in nodes:
        assert emitter is not None
        with emitter.at(node, like=node):
            if schema_name(node) == FORWARD:
                node.replace_all_uses_with(emitter.call(GROUPED_MM, _tensors(node), name=node.name))
            else:
                _write_out_backward(emitter, node)
        for user in list(node.users):
            graph.erase_node(user)
        graph.erase_node(node)
    return len(nodes)


def _write_out_backward(emitter: Emitter, node: fx.Node) -> None:
    x, weight, ends, gradient = _tensors(node)
    for user in node.users:
        assert user.target is operator.getitem
        if user.args[1] == 0:
            args = (gradient, emitter.call(aten.permute.default, (weight, [0, 2, 1])), ends)
        else:
            args = (emitter.call(aten.permute.default, (x, [1, 0])), gradient, ends)
        user.replace_all_uses_with(emitter.call(GROUPED_MM, args, name=user.name))


def _tensors(node: fx.Node) -> tuple[Any, ...]:
    """The arguments in order, however they were given."""
    names = ("input", "weight", "offs", "grad_output")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return tuple(given[name] for name in names if name in given)
