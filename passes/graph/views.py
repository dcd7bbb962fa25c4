"""Views: which tensor an operand is a rearrangement of, and which operands are the same tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten

RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
COPIES = {aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default}
CASTS = {aten._to_copy.default, torch.ops.prims.convert_element_type.default}
REARRANGEMENTS = (
    RESHAPES
    | COPIES
    | {
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.expand.default,
    }
)
_LEADING = RESHAPES | {aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims}


def shape_of(node: fx.Node) -> Sequence[Any]:
    """The node's sizes, ints or SymInts."""
    return node.meta["val"].shape


def target_of(node: fx.Node) -> Callable[..., Any]:
    """The operator that a `call_function` node calls."""
    assert callable(node.target), node
    return node.target


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal, without adding a guard."""
    return statically_known_true(a == b)


class ValueNumbers:
    """Names equal rearrangements and casts by one node each, so that q, k and v are seen to read one tensor.

    AOTAutograd repeats `view(x, [tokens, features])` for every linear that reads x; these nodes hold the same values.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._representative: dict[fx.Node, fx.Node] = {}
        seen: dict[Any, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "call_function" and (node.target in REARRANGEMENTS or node.target in CASTS):
                key = (node.target, self._key(node.args), self._key(node.kwargs))
                self._representative[node] = seen.setdefault(key, node)

    def __getitem__(self, node: fx.Node) -> fx.Node:
        return self._representative.get(node, node)

    def _key(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self[value]
        if isinstance(value, (list, tuple)):
            return tuple(self._key(v) for v in value)
        if isinstance(value, dict):
            return tuple((k, self._key(v)) for k, v in value.items())
        return (type(value), value)


def history(node: Any, through_casts: bool = True) -> list[fx.Node]:
    """`node`, and what it is a rearrangement (and a cast) of, back to the tensor itself."""
    nodes: list[fx.Node] = [node]
    while node.op == "call_function" and (node.target in REARRANGEMENTS or (through_casts and node.target in CASTS)):
        node = node.args[0]
        nodes.append(node)
    return nodes


def from_bfloat16(node: fx.Node) -> bool:
    """Whether `node` is float32 cast from bfloat16."""
    if node.target not in CASTS:
        return False
    source: Any = node.args[0]
    return bool(source.meta["val"].dtype == torch.bfloat16 and node.meta["val"].dtype == torch.float32)


def root(node: fx.Node, through_casts: bool = True) -> fx.Node:
    """The tensor that `node` is a rearrangement (and a cast) of."""
    return history(node, through_casts)[-1]


def undoes(view: fx.Node, value: fx.Node) -> bool:
    """Whether permuting `value` as `view` does gives back what `value` is a permutation of."""
    if view.target is not aten.permute.default or value.target is not aten.permute.default:
        return False
    rank = len(shape_of(value))
    first, second = order_of(value, rank), order_of(view, rank)
    return [first[i] for i in second] == list(range(rank))


def strip_views(node: fx.Node, axis: int, most: int | None = None) -> tuple[fx.Node, int, tuple[fx.Node, ...]]:
    """Walks back from `node` through transposes, broadcasts, copies and unit dimensions, following `axis`.

    Returns (base, axis of base, views from base to node). The matrix stays in the last two dimensions of `base`, so
    that two-dimensional blocks cover the same elements before and after. most: the dimensions that base may have.
    """
    views: list[fx.Node] = []
    found = node, axis, 0
    while node.op == "call_function" and node.target in REARRANGEMENTS:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        before = _axis_before(node, source, axis)
        if before is None:
            break
        views.append(node)
        node, axis = source, before
        if most is None or len(shape_of(node)) <= most:
            found = node, axis, len(views)
    base, axis, count = found
    return base, axis, tuple(reversed(views[:count]))


def for_any_matrix(view: fx.Node) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A view that `strip_views` walks through, as an operator and what it takes after the tensor, without matrix sizes.

    So that it can be done to a tensor with more rows or columns than it had, as after a Hadamard transform.
    """
    before, after = len(shape_of(view.args[0])), len(shape_of(view))  # type: ignore[arg-type]
    if view.target is aten.expand.default:
        sizes: Any = view.args[1]
        return aten.expand.default, ([*sizes[:-2], -1, -1],)
    if view.target not in _LEADING:
        return target_of(view), view.args[1:]
    if after < before:
        return aten.squeeze.dims, (list(range(before - after)),)
    return aten.expand.default, ([1] * (after - before) + [-1] * before,)


def _axis_before(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """The axis of `source` that `axis` of `node` was, or None where the two matrices differ."""
    old, new = shape_of(source), shape_of(node)
    if len(old) < 2:
        return None
    if node.target in COPIES:
        return axis
    if node.target is aten.t.default:
        return 1 - axis if len(old) == 2 else axis
    if node.target in (aten.permute.default, aten.transpose.int):
        order = order_of(node, len(old))
        batch = list(range(len(old) - 2))
        return order[axis] if order[: len(batch)] == batch else None
    if node.target is aten.expand.default:
        matrix_kept = all(same(a, b) for a, b in zip(old[-2:], new[-2:], strict=True))
        return axis - (len(new) - len(old)) if matrix_kept else None
    # unsqueeze, squeeze, view: only leading dimensions of size 1 may come or go
    lead = abs(len(old) - len(new))
    longer, shorter = (old, new) if len(old) > len(new) else (new, old)
    units_lead = all(same(s, 1) for s in longer[:lead])
    if units_lead and all(same(a, b) for a, b in zip(longer[lead:], shorter, strict=True)):
        return axis + len(old) - len(new)
    return None


def order_of(node: Any, rank: int) -> list[int]:
    """Which dimension of what it permutes each dimension of a permutation is."""
    if node.target is aten.t.default:
        return list(range(rank))[::-1]
    if node.target is aten.permute.default:
        return [int(d) % rank for d in node.args[1]]
    a, b = (int(d) % rank for d in node.args[1:3])
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return order
