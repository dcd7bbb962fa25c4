"""Typed views of our operators that stand in a graph: what each argument of a node is, by name."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.blocks import normalize_axis
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.ops.residual import RESIDUAL

__all__ = ["DequantizeCall", "QuantizeCall", "ResidualCall"]


@dataclass(frozen=True, kw_only=True)
class QuantizeCall:
    """A `metis::quantize` node."""

    node: fx.Node
    x: fx.Node
    spec: QuantSpec
    axis: int  # from 0
    seed: fx.Node | None
    stream: int
    swizzled: bool
    amax: fx.Node | None  # what the scale of the tensor is made of; None: the tensor's own

    @classmethod
    def of(cls, node: Any) -> QuantizeCall | None:
        """The call that `node` is; None for any other node."""
        if node.target is not QUANTIZE:
            return None
        names = ("x", "spec", "axis", "seed", "stream", "swizzled", "amax")
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        x = given["x"]
        return cls(
            node=node,
            x=x,
            spec=QuantSpec.parse(given["spec"]),
            axis=normalize_axis(given["axis"], x.meta["val"].dim()),
            seed=given.get("seed"),
            stream=given.get("stream", 0),
            swizzled=given.get("swizzled", False),
            amax=given.get("amax"),
        )

    @property
    def parts(self) -> list[fx.Node]:
        """The nodes that take its codes and scales out of it, in no order."""
        return [user for user in self.node.users if user.target is operator.getitem]


@dataclass(frozen=True, kw_only=True)
class DequantizeCall:
    """A `metis::dequantize` node."""

    node: fx.Node
    parts: Sequence[fx.Node]  # codes, block scales, tensor scale: those that the format has
    spec: QuantSpec
    axis: int  # from 0
    length: int | fx.Node  # along that axis

    @classmethod
    def of(cls, node: Any) -> DequantizeCall | None:
        """The call that `node` is; None for any other node."""
        if node.target is not DEQUANTIZE:
            return None
        parts, text, axis, length = node.args
        return cls(
            node=node,
            parts=parts,
            spec=QuantSpec.parse(text),
            axis=normalize_axis(axis, node.meta["val"].dim()),
            length=length,
        )

    @property
    def source(self) -> QuantizeCall | None:
        """The quantization that made all its parts in this graph; None where one came from elsewhere."""
        sources = {part.args[0] if part.target is operator.getitem else None for part in self.parts}
        return QuantizeCall.of(sources.pop()) if len(sources) == 1 and None not in sources else None


@dataclass(frozen=True, kw_only=True)
class ResidualCall:
    """A `metis::residual` node: x - mean - left @ right, of which at least one is there."""

    node: fx.Node
    x: fx.Node
    mean: fx.Node | None
    left: fx.Node | None
    right: fx.Node | None

    @classmethod
    def of(cls, node: Any) -> ResidualCall | None:
        """The call that `node` is; None for any other node."""
        if node.target is not RESIDUAL:
            return None
        given: dict[str, Any] = {"mean": None, "left": None, "right": None}
        given |= dict(zip(("x", *given), node.args, strict=False)) | node.kwargs
        return cls(node=node, **given)
