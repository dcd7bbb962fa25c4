"""Runs a graph and refuses what no CPU or compiler need agree on, whose value torch itself leaves open."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten, prims = torch.ops.aten, torch.ops.prims
CASTS = (aten._to_copy.default, prims.convert_element_type.default)
SHIFTS = (
    aten.bitwise_left_shift.Tensor,
    aten.bitwise_right_shift.Tensor,
    aten.__lshift__.Scalar,
    aten.__rshift__.Scalar,
)
DIVISIONS = (aten.remainder.Scalar, aten.remainder.Tensor, aten.floor_divide.default, aten.div.Tensor_mode)


class UndefinedError(AssertionError):
    """An operation without a defined result."""


class Defined(fx.Interpreter):
    """Raises UndefinedError for a float that its integer dtype can't hold (8 and 16 bits: at all), a shift by less than
    0 or by the width or more, and a division of integers by 0."""

    def run_node(self, n: fx.Node) -> Any:
        args: Any = self.fetch_args_kwargs_from_env(n)[0]
        if n.target in DIVISIONS and not torch.as_tensor(args[0]).is_floating_point():
            self._check(n, bool((torch.as_tensor(args[1]) != 0).all()), "a division by 0")
        made = super().run_node(n)
        if n.target in CASTS and args[0].is_floating_point() and is_integer(made.dtype):
            self._check(n, made.dtype.itemsize > 2, f"{args[0].dtype} to {made.dtype}")
            limits = torch.iinfo(made.dtype)
            x = args[0].double()
            self._check(n, bool(((x >= limits.min) & (x <= limits.max)).all()), "a float that does not fit")
        if n.target in SHIFTS:
            by = torch.as_tensor(args[1])
            self._check(n, bool(((by >= 0) & (by < 8 * made.dtype.itemsize)).all()), f"a shift by {by}")
        return made

    def _check(self, n: fx.Node, holds: bool, what: str) -> None:
        if not holds:
            raise UndefinedError(f"{what}, in {n.format_node()}")


def is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def hard_to_quantize(shape: tuple[int, int]) -> list[Tensor]:
    """What quantization meets at the ends of its range."""
    x = torch.randn(shape) * torch.logspace(-45, 38, shape[1])
    with_specials = torch.randn(shape)
    with_specials[0, :4] = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf])
    huge = torch.full(shape, torch.finfo(torch.float32).max)
    return [x, with_specials, torch.zeros(shape), huge, torch.full(shape, 2.0**-149), torch.full(shape, torch.nan)]
