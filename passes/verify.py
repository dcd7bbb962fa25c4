"""Check a rewritten graph: dtypes, shapes, metadata, and that products contract over the axis that is blocked."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from metis_compile.compat import OpOverload
from metis_compile.ops.checks import differ
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.ops.residual import check_residual
from metis_compile.passes.graph.calls import DequantizeCall, QuantizeCall, ResidualCall
from metis_compile.passes.graph.products import GROUPED, OPERANDS
from metis_compile.passes.graph.views import REARRANGEMENTS, shape_of, strip_views


class GraphError(AssertionError):
    """A graph that no pass should have produced. Names the node."""


def verify(graph: fx.Graph, after: str, given: Collection[fx.Node] = ()) -> None:
    """Raises GraphError, naming the pass `after` which the graph is wrong, unless every rule below holds.

    given: nodes that broke a rule before any of our passes ran, such as those that Inductor's own leave without
    metadata.
    """
    try:
        graph.lint()
        for node in graph.nodes:
            for rule in () if node in given else RULES:
                message = rule(node)
                if message is not None:
                    raise GraphError(f"{node.name}: {message}")
    except (GraphError, RuntimeError) as error:
        raise GraphError(f"metis: the graph is wrong after {after}: {error}") from error


def broken(graph: fx.Graph) -> set[fx.Node]:
    """The nodes for which a rule does not hold."""
    return {node for node in graph.nodes if any(rule(node) is not None for rule in RULES)}


def has_value(node: Any) -> str | None:
    """Every call that returns something has `val` metadata."""
    if node.op != "call_function" or "val" in node.meta:
        return None
    returns_nothing = isinstance(node.target, OpOverload) and not node.target._schema.returns
    return None if returns_nothing else "no `val` metadata"


def quantize_is_typed(node: Any) -> str | None:
    """metis.quantize reads a 16- or 32-bit float along one of its axes, with a seed only to round at random."""
    if node.target is not QUANTIZE:
        return None
    x = node.args[0]
    if not x.meta["val"].dtype.is_floating_point or x.meta["val"].dtype.itemsize not in (2, 4):
        return f"quantizes a {x.meta['val'].dtype}"
    if not -x.meta["val"].dim() <= int(node.args[2]) < x.meta["val"].dim():
        return f"axis {node.args[2]} of a {x.meta['val'].dim()}-dimensional tensor"
    call = QuantizeCall.of(node)
    if call is not None and (call.seed is not None) != call.spec.needs_noise:
        return f"rounds {call.spec.rounding} {'without' if call.seed is None else 'with'} a seed"
    return None


def quantizes_the_original(node: Any) -> str | None:
    """No operand is quantized from values that were quantized already."""
    if node.target is not QUANTIZE:
        return None
    source, _, _ = strip_views(node.args[0], 0)
    if source.target is DEQUANTIZE:
        return f"quantizes {source.name}, which is quantized already"
    return None


def dequantize_matches(node: Any) -> str | None:
    """metis.dequantize decodes all parts of one metis.quantize, by its spec, axis and length.

    While lowering, a kernel's operator may stand for the quantization: what it makes is its own check's.
    """
    if node.target is not DEQUANTIZE:
        return None
    parts, spec, axis = node.args[:3]
    source: Any
    sources = {p.args[0] if p.target is operator.getitem else None for p in parts}
    if sources == {None}:
        return None  # saved for backward: the codes are inputs of this graph
    if len(sources) != 1:
        return "decodes parts of several quantizations"
    (source,) = sources
    if getattr(source.target, "namespace", None) == "metis" and source.target is not QUANTIZE:
        return None
    if source.target is not QUANTIZE:
        return f"decodes {source}, which metis.quantize did not make"
    if [p.args[1] for p in parts] != list(range(len(source.meta["val"]))):
        return "decodes the parts in another order than they were made"
    if (spec, axis) != tuple(source.args[1:3]):
        return f"decodes as {spec!r} axis {axis} what {source} made as {source.args[1:3]}"
    return None


def residual_is_typed(node: Any) -> str | None:
    """metis.residual is float32 of the shape of what it subtracts from, and what it subtracts fits."""
    call = ResidualCall.of(node)
    if call is None:
        return None
    subtracted = (None if n is None else n.meta["val"] for n in (call.mean, call.left, call.right))
    try:
        check_residual(call.x.meta["val"], *subtracted)
    except (TypeError, ValueError) as error:
        return str(error)
    made = node.meta["val"]
    if made.dtype != torch.float32 or differ(made.shape, call.x.meta["val"].shape):
        return f"leaves {made.dtype} {list(made.shape)} of {list(call.x.meta['val'].shape)}"
    return None


def axis_rule(node: Any) -> str | None:
    """A product contracts over the axis that its quantized operands are blocked along; a tail, in float32, need not."""
    if node.target not in OPERANDS or node.meta.get("metis_tail"):
        return None
    left, right = (node.args[i] for i in OPERANDS[node.target])
    for side, operand, axis in (("left", left, -1), ("right", right, -2)):
        base: Any
        base, base_axis, _ = strip_views(operand, len(shape_of(operand)) + axis)
        decoded = DequantizeCall.of(base)
        if decoded is None:
            if _reads_dequantized(base):
                return f"its {side} operand rearranges {base.name} across the blocks of a quantized tensor"
            continue
        if not decoded.spec.orientation_free and decoded.axis != base_axis:
            return f"contracts over axis {base_axis} of {base.name}, which is blocked along axis {decoded.axis}"
    return None


def product_is_typed(node: Any) -> str | None:
    """Both operands of a product have its dtype, and shapes that fit."""
    if node.target not in OPERANDS:
        return None
    left, right = (node.args[i].meta["val"] for i in OPERANDS[node.target])
    if left.dtype != right.dtype or left.dtype != node.meta["val"].dtype:
        return f"multiplies {left.dtype} by {right.dtype} into {node.meta['val'].dtype}"
    if left.dim() != right.dim() and node.target not in GROUPED:
        return f"multiplies {left.dim()} by {right.dim()} dimensions"
    return None


def _reads_dequantized(node: Any) -> bool:
    while node.op == "call_function" and node.target in REARRANGEMENTS:
        node = node.args[0]
    return node.target is DEQUANTIZE


RULES = (
    has_value,
    quantize_is_typed,
    quantizes_the_original,
    dequantize_matches,
    residual_is_typed,
    axis_rule,
    product_is_typed,
)
