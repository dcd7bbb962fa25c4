"""Decompose the operators that hide the products of a mixture's experts, so that each is seen for what it is.

transformers runs experts that are not in bfloat16 by an operator of its own, and their backward by another that makes
both gradients:

    y = grouped_mm_fallback(x, w, offs)                 ->  y   = metis.grouped_mm(x, w, offs)
    dx, dw = grouped_mm_fallback_backward(x, w, offs, g)    dx  = metis.grouped_mm(g, w^T, offs)
                                                            dw  = metis.grouped_mm(x^T, g, offs)

and torch's own operator has two more forms. Tokens as columns come from the backward of tokens that are stored by
column; a batch comes from experts that are given as many tokens each:

    y = _grouped_mm(w, x^T, offs)                       ->  y   = metis.grouped_mm(x, w^T, offs)^T
    y = _grouped_mm(x, w), a batch of matrices each     ->  y   = bmm(x, w)
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
OF_TORCH = aten._grouped_mm.default


def decompose_experts(context: PassContext) -> PassResult:
    """Replaces these operators of the joint graph."""
    graph = context.graph
    nodes = [node for node in graph.nodes if (_is_opaque(node) or _is_other_form(node)) and _is_supported(node)]
    builder = GraphBuilder(graph) if nodes else None
    for node in nodes:
        assert builder is not None
        with builder.at(node, like=node):
            if node.target is OF_TORCH:
                _decompose_form(builder, node)
            elif schema_name(node) == FORWARD:
                node.replace_all_uses_with(builder.call(GROUPED_MM, _tensors(node), name=node.name))
            else:
                _decompose_backward(builder, node)
        for user in list(node.users):
            graph.erase_node(user)
        graph.erase_node(node)
    return PassResult(changed=len(nodes))


def _decompose_backward(builder: GraphBuilder, node: fx.Node) -> None:
    """Both gradients lie in memory as what they are of: what comes after them counts on it."""
    x, weight, offs, gradient = _tensors(node)
    for user in node.users:
        assert user.target is operator.getitem
        if user.args[1] == 0:
            operands = gradient, _transposed(builder, weight)
        elif _is_transposed(weight):
            operands = _transposed(builder, gradient), x
        else:
            operands = _transposed(builder, x), gradient
        made = builder.call(GROUPED_MM, (*operands, offs), name=user.name)
        if user.args[1] == 0 and _is_transposed(x):
            made = _transposed(builder, _by_row(builder, _transposed(builder, made)))
        elif user.args[1] != 0 and _is_transposed(weight):
            made = _transposed(builder, made)
        user.replace_all_uses_with(made)


def _decompose_form(builder: GraphBuilder, node: fx.Node) -> None:
    """What is stored by row stays so."""
    left, right, *offs = _tensors(node)
    if not offs:
        made = builder.call(aten.bmm.default, (left, right), name=node.name)
    else:
        operands = _transposed(builder, right), _transposed(builder, left)
        made = _transposed(builder, builder.call(GROUPED_MM, (*operands, *offs), name=node.name))
        made = _by_row(builder, made)
    node.replace_all_uses_with(made)


def _transposed(builder: GraphBuilder, tensor: fx.Node) -> fx.Node:
    order = [1, 0] if tensor.meta["val"].dim() == 2 else [0, 2, 1]
    return builder.call(aten.permute.default, (tensor, order))


def _by_row(builder: GraphBuilder, tensor: fx.Node) -> fx.Node:
    return builder.call(aten.clone.default, (tensor,), {"memory_format": torch.contiguous_format})


def _is_opaque(node: fx.Node) -> bool:
    return schema_name(node) in (FORWARD, BACKWARD)


def _is_other_form(node: fx.Node) -> bool:
    """Whether it is a grouped product of columns, or of a batch; with a bias or another dtype it is left."""
    if node.target is not OF_TORCH:
        return False
    given = dict(zip(("left", "right", "offs", "bias", "out_dtype"), node.args, strict=False)) | node.kwargs
    offs, bias, dtype = (given.get(name) for name in ("offs", "bias", "out_dtype"))
    left, right = (node.args[i].meta["val"].dim() for i in (0, 1))  # type: ignore[union-attr]
    columns = left == 3 and right == 2 and offs is not None
    batch = left == right == 3 and offs is None
    return (columns or batch) and bias is None and dtype in (None, node.args[0].meta["val"].dtype)  # type: ignore[union-attr]


def _is_transposed(node: fx.Node) -> bool:
    value = node.meta["val"]
    return bool(not value.is_contiguous() and value.mT.is_contiguous())


def _is_supported(node: fx.Node) -> bool:
    """Whether `metis.grouped_mm` takes them: transformers' operator does its best with what it is given."""
    left, right, *rest = (tensor.meta["val"] for tensor in _tensors(node))
    return (
        left.dtype == right.dtype
        and left.dtype in SUPPORTED_DTYPES
        and all(left.device == other.device for other in (right, *rest[:1]))
    )


def _tensors(node: fx.Node) -> tuple[Any, ...]:
    """The tensors among the arguments in order, however they were given."""
    names = ("input", "weight", "offs", "grad_output")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return tuple(given[name] for name in names if isinstance(given.get(name), fx.Node))
