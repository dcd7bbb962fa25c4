"""Where a value goes and comes from: through softmaxes, into losses, to the outputs of a graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from operator import getitem
from typing import Any

import torch
from torch import fx

from metis_compile.compat import OpOverload
from metis_compile.passes.graph.products import OPERANDS
from metis_compile.passes.graph.views import CASTS, REARRANGEMENTS

aten = torch.ops.aten

PICKS = {aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, getitem}
SCALES = {aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar}
_MASKS = {aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.nan_to_num.default}
_SOFTMAXES = ("aten::_softmax", "aten::_safe_softmax", "aten::softmax")
_LOG_SOFTMAXES = ("aten::_log_softmax", "aten::log_softmax", "aten::logsumexp")
_LOSSES = re.compile(r"cross_entropy|\w+_loss|\w+Loss|binary_cross_entropy(_with_logits)?|kl_div", re.ASCII)
_MOST = 2_000  # nodes that a walk looks at


def is_product(node: fx.Node) -> bool:
    return node.target in OPERANDS


def is_pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags


def is_rearrangement(node: fx.Node) -> bool:
    """A view, a copy, a cast or a part of a tensor."""
    return node.target in REARRANGEMENTS or node.target in CASTS or node.target in PICKS


def is_softmax(node: fx.Node) -> bool:
    """Whether a node is one of those that a softmax was decomposed into."""
    return _original(node) in _SOFTMAXES


def is_log_softmax(node: fx.Node) -> bool:
    return _original(node) in _LOG_SOFTMAXES


def is_of_loss(node: fx.Node) -> bool:
    """Whether a node is of a call of one of torch's losses."""
    stack = node.meta.get("source_fn_stack") or []
    names = [getattr(function, "__name__", str(function)) for _, function in stack]
    return any(_LOSSES.fullmatch(name) for name in names)


def scales(node: fx.Node, data: set[fx.Node]) -> bool:
    """Whether a node multiplies a value by what does not depend on data: a number, dropout's mask."""
    return node.target in SCALES and sum(source in data for source in node.all_input_nodes) < 2


def masks(node: fx.Node) -> bool:
    return node.target in _MASKS


def reached(
    start: fx.Node, through: Callable[[fx.Node], bool], forward: Callable[[fx.Node], bool]
) -> Iterator[fx.Node]:
    """The users of `start`, and of those that `through` holds for, in turn; only nodes that `forward` holds for."""
    yield from _walk(start, lambda node: node.users, through, forward)


def sources(start: fx.Node, through: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """`start`, and the inputs of those that `through` holds for, in turn."""
    yield start
    if through(start):
        yield from _walk(start, lambda node: node.all_input_nodes, through, lambda node: True)


def _walk(
    start: fx.Node,
    neighbours: Callable[[fx.Node], Any],
    through: Callable[[fx.Node], bool],
    allowed: Callable[[fx.Node], bool],
) -> Iterator[fx.Node]:
    seen, stack = {start}, [start]
    while stack and len(seen) < _MOST:
        for node in neighbours(stack.pop()):
            if node not in seen and allowed(node):
                seen.add(node)
                yield node
                if through(node):
                    stack.append(node)


def _original(node: fx.Node) -> str:
    original = node.meta.get("original_aten")
    return original._schema.name if isinstance(original, OpOverload) else ""
