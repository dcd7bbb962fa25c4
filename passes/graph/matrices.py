"""Which matrix of which tensor `[1, rows, columns]` is, behind the rearrangements that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from metis_compile.passes.graph.views import COPIES, RESHAPES, history, order_of, same, shape_of

aten = torch.ops.aten

# the dimensions of a tensor, each as the dimensions of another that it runs through, first to last; without those of 1
_Dims = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """`source` with its first dimensions as rows and its last, `columns`, as columns; or that, transposed."""

    source: fx.Node
    shape: tuple[Any, Any]  # of the matrix of `source`: ints or SymInts
    columns: tuple[int, ...]
    transposed: bool


def matrices_of(node: fx.Node) -> Iterator[Matrix]:
    """The matrices that `node`, [1, rows, columns], is a rearrangement of as a whole: the earliest first, `node` last.

    Earlier than one that mixes rows and columns of what it is made of, there is none. One row or column is both ways
    round a matrix of its source.
    """
    chain = history(node, through_casts=False)
    for start in range(len(chain) - 1, -1, -1):
        source = chain[start]
        steps = chain[start - 1 :: -1] if start else []
        dims = _through(steps, _own(source), shape_of(source))
        if dims is None or len(dims) != 3 or dims[0]:
            continue
        rows, columns = dims[1:]
        for first, last, transposed in ((rows, columns, False), (columns, rows, True)):
            if first + last == sorted(first + last):
                shape = _size(source, first), _size(source, last)
                yield Matrix(source=source, shape=shape, columns=tuple(last), transposed=transposed)


def _own(source: fx.Node) -> _Dims:
    return [[] if same(size, 1) else [dim] for dim, size in enumerate(shape_of(source))]


def _size(source: fx.Node, dims: list[int]) -> Any:
    size: Any = 1
    for dim in dims:
        size = size * shape_of(source)[dim]
    return size


def _through(steps: list[fx.Node], dims: _Dims, sizes: Any) -> _Dims | None:
    """The dimensions after these rearrangements; None where one of them takes a dimension apart or repeats it."""
    for step in steps:
        found = _after(step, dims, sizes)
        if found is None:
            return None
        dims = found
    return dims


def _after(step: Any, dims: _Dims, sizes: Any) -> _Dims | None:
    shape = shape_of(step)
    if step.target in COPIES:
        return dims
    if step.target in (aten.permute.default, aten.transpose.int, aten.t.default):
        return [dims[i] for i in order_of(step, len(dims))]
    if step.target is aten.expand.default:
        before = shape_of(step.args[0])
        added = len(shape) - len(before)
        kept = all(same(a, b) for a, b in zip(shape[added:], before, strict=True))
        return [[]] * added + dims if kept and all(same(s, 1) for s in shape[:added]) else None
    if step.target not in RESHAPES | {aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims}:
        return None
    return _regrouped([dim for group in dims for dim in group], sizes, shape)


def _regrouped(flat: list[int], sizes: Any, shape: Any) -> _Dims | None:
    """The dimensions `flat`, one after the other, as those of a tensor of `shape`."""
    groups: _Dims = []
    for size in shape:
        group: list[int] = []
        reached: Any = 1
        while not same(reached, size) and flat:
            reached = reached * sizes[flat[0]]
            group.append(flat.pop(0))
        if not same(reached, size):
            return None
        groups.append(group)
    return None if flat else groups
