"""Some elements of a product's result, without all of it: what its sums and products are of is cut to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from metis_compile.statistics.product import left_block, result_block, right_block

__all__ = ["BlockOf", "added_block"]

aten = torch.ops.aten
_Compute = Callable[[Mapping[str, Any], Sequence[int]], Tensor]


class BlockOf:
    """`result_block` of a node's value. needs: the nodes whose whole values it is computed from."""

    def __init__(self, node: fx.Node) -> None:
        self.needs: set[str] = set()
        self._compute = self._of(node)

    def value(self, values: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
        """shape: of the whole result."""
        return self._compute(values, shape)

    def _of(self, node: fx.Node) -> _Compute:
        args: Any = node.args
        target = None if node.kwargs else node.target
        if target is aten.add.Tensor and all(isinstance(arg, fx.Node) for arg in args):
            first, second = (self._of(arg) for arg in args)
            return lambda values, shape: first(values, shape) + second(values, shape)
        if target in (aten.mm.default, aten.bmm.default) and _is_whole(node):
            return self._product(*args)
        if target in (aten.addmm.default, aten.baddbmm.default):
            added, product = self._whole(args[0]), self._product(*args[1:])
            return lambda values, shape: added(values, shape) + product(values, shape)
        return self._whole(node)

    def _product(self, left: fx.Node, right: fx.Node) -> _Compute:
        self.needs |= {left.name, right.name}
        return lambda values, shape: left_block(values[left.name]) @ right_block(values[right.name])

    def _whole(self, node: fx.Node) -> _Compute:
        self.needs.add(node.name)
        return lambda values, shape: added_block(values[node.name], shape)


def added_block(added: Tensor, shape: Sequence[int]) -> Tensor:
    """The elements of the result that are looked at, of what broadcasts to it."""
    return result_block(added.expand(shape))


def _is_whole(node: fx.Node) -> bool:
    """Whether a product has as many rows and columns as it seems to: a mean's tail is one row, added to all."""
    return all(not isinstance(size, int) or size != 1 for size in node.meta["val"].shape[-2:])
