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
from metis_compile.passes.find import SUPPORTED_DTYPES
from metis_compile.passes.names import schema_name

__all__ = ["write_out_experts"]

aten = torch.ops.aten
FORWARD = "transformers::grouped_mm_fallback"
BACKWARD = "transformers::grouped_mm_fallback_backward"


def write_out_experts(graph: fx.Graph) -> int:
    """Replaces these operators in `graph`; returns how many there were."""
    nodes = [node for node in graph.nodes if schema_name(node) in (FORWARD, BACKWARD) and _is_supported(node)]
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
    """Both gradients lie in memory as what they are of: what comes after them counts on it."""
    x, weight, ends, gradient = _tensors(node)

    def transposed(tensor: fx.Node) -> fx.Node:
        order = [1, 0] if tensor.meta["val"].dim() == 2 else [0, 2, 1]
        return emitter.call(aten.permute.default, (tensor, order))

    for user in node.users:
        assert user.target is operator.getitem
        if user.args[1] == 0:
            made = emitter.call(GROUPED_MM, (gradient, transposed(weight), ends), name=user.name)
            if _is_transposed(x):
                copy = emitter.call(aten.clone.default, (transposed(made),), {"memory_format": torch.contiguous_format})
                made = transposed(copy)
        elif _is_transposed(weight):
            made = transposed(emitter.call(GROUPED_MM, (transposed(gradient), x, ends), name=user.name))
        else:
            made = emitter.call(GROUPED_MM, (transposed(x), gradient, ends), name=user.name)
        user.replace_all_uses_with(made)


def _is_transposed(node: fx.Node) -> bool:
    value = node.meta["val"]
    return bool(not value.is_contiguous() and value.mT.is_contiguous())


def _is_supported(node: fx.Node) -> bool:
    """Whether `metis.grouped_mm` takes them: transformers' operator does its best with what it is given."""
    *matrices, ends = (_tensors(node)[i].meta["val"] for i in (0, 1, 2))
    dtypes = {matrix.dtype for matrix in matrices}
    return len(dtypes) == 1 and dtypes <= set(SUPPORTED_DTYPES) and all(m.device == ends.device for m in matrices)


def _tensors(node: fx.Node) -> tuple[Any, ...]:
    """The arguments in order, however they were given."""
    names = ("input", "weight", "offs", "grad_output")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return tuple(given[name] for name in names if name in given)
