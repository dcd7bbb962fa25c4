"""Write out the operators that hide the products of a mixture's experts, so that each is seen for what it is.

transformers runs experts that are not in bfloat16 by an operator of its own, and their backward by another that makes
both gradients:

    y = grouped_mm_fallback(x, w, offs)                 ->  y   = metis.grouped_mm(x, w, offs)
    dx, dw = grouped_mm_fallback_backward(x, w, offs, g)    dx  = metis.grouped_mm(g, w^T, offs)
                                                            dw  = metis.grouped_mm(x^T, g, offs)
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from metis_compile.ops.grouped import GROUPED_MM
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.products import SUPPORTED_DTYPES
from metis_compile.passes.graph.provenance import schema_name

__all__ = ["decompose_experts"]

aten = torch.ops.aten
FORWARD = "transformers::grouped_mm_fallback"
BACKWARD = "transformers::grouped_mm_fallback_backward"


def decompose_experts(context: PassContext) -> PassResult:
    """Replaces these operators of the joint graph."""
    graph = context.graph
    nodes = [node for node in graph.nodes if schema_name(node) in (FORWARD, BACKWARD) and _is_supported(node)]
    builder = GraphBuilder(graph) if nodes else None
    for node in nodes:
        assert builder is not None
        with builder.at(node, like=node):
            if schema_name(node) == FORWARD:
                node.replace_all_uses_with(builder.call(GROUPED_MM, _tensors(node), name=node.name))
            else:
                _write_out_backward(builder, node)
        for user in list(node.users):
            graph.erase_node(user)
        graph.erase_node(node)
    return PassResult(changed=len(nodes))


def _write_out_backward(builder: GraphBuilder, node: fx.Node) -> None:
    """Both gradients lie in memory as what they are of: what comes after them counts on it."""
    x, weight, offs, gradient = _tensors(node)

    def transposed(tensor: fx.Node) -> fx.Node:
        order = [1, 0] if tensor.meta["val"].dim() == 2 else [0, 2, 1]
        return builder.call(aten.permute.default, (tensor, order))

    for user in node.users:
        assert user.target is operator.getitem
        if user.args[1] == 0:
            made = builder.call(GROUPED_MM, (gradient, transposed(weight), offs), name=user.name)
            if _is_transposed(x):
                copy = builder.call(aten.clone.default, (transposed(made),), {"memory_format": torch.contiguous_format})
                made = transposed(copy)
        elif _is_transposed(weight):
            made = transposed(builder.call(GROUPED_MM, (transposed(gradient), x, offs), name=user.name))
        else:
            made = builder.call(GROUPED_MM, (transposed(x), gradient, offs), name=user.name)
        user.replace_all_uses_with(made)


def _is_transposed(node: fx.Node) -> bool:
    value = node.meta["val"]
    return bool(not value.is_contiguous() and value.mT.is_contiguous())


def _is_supported(node: fx.Node) -> bool:
    """Whether `metis.grouped_mm` takes them: transformers' operator does its best with what it is given."""
    *matrices, offs = (_tensors(node)[i].meta["val"] for i in (0, 1, 2))
    dtypes = {matrix.dtype for matrix in matrices}
    return len(dtypes) == 1 and dtypes <= set(SUPPORTED_DTYPES) and all(m.device == offs.device for m in matrices)


def _tensors(node: fx.Node) -> tuple[Any, ...]:
    """The arguments in order, however they were given."""
    names = ("input", "weight", "offs", "grad_output")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return tuple(given[name] for name in names if name in given)
