"""The Hadamard transform as one operator, and its inverse: the plain torch of `metis_compile.conditioning.hadamard`.

`metis::hadamard(x, axis, signs?)` and `metis::inverse_hadamard(x, axis, length, signs?)` give float32 of x's shape, but
along the axis. There are as many signs as elements that it mixes; without any they are the 16 that never change.
Written out in a graph a transform is two dozen nodes, which a kernel that transforms by itself would have to find
again. torch.utils.flop_counter knows their products.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from metis_compile.conditioning.hadamard import SIZE, SIZES, fixed_signs, hadamard, inverse_hadamard
from metis_compile.ops.checks import axis_of, check_device, check_dtype

__all__ = ["HADAMARD", "INVERSE_HADAMARD"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_library = torch.library.Library("metis", "FRAGMENT")
_library.define("hadamard(Tensor x, int axis, Tensor? signs=None) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(
    "inverse_hadamard(Tensor x, int axis, SymInt length, Tensor? signs=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "hadamard", "CompositeExplicitAutograd")
def _hadamard(x: Tensor, axis: int, signs: Tensor | None = None) -> Tensor:
    axis = _check("metis::hadamard", x, axis, signs)
    signs = fixed_signs(x.device) if signs is None else signs
    return hadamard(x, axis, signs).clone(memory_format=torch.contiguous_format)


@torch.library.impl(_library, "inverse_hadamard", "CompositeExplicitAutograd")
def _inverse_hadamard(x: Tensor, axis: int, length: int, signs: Tensor | None = None) -> Tensor:
    axis = _check("metis::inverse_hadamard", x, axis, signs)
    signs = fixed_signs(x.device) if signs is None else signs
    return inverse_hadamard(x, axis, signs, length).clone(memory_format=torch.contiguous_format)


@torch.library.register_fake("metis::hadamard", lib=_library)
def _(x: Tensor, axis: int, signs: Tensor | None = None) -> Tensor:
    axis = _check("metis::hadamard", x, axis, signs)
    shape = list(x.shape)
    size = _size_of(signs)
    shape[axis] = (shape[axis] + size - 1) // size * size
    return x.new_empty(shape, dtype=torch.float32)


@torch.library.register_fake("metis::inverse_hadamard", lib=_library)
def _(x: Tensor, axis: int, length: int, signs: Tensor | None = None) -> Tensor:
    axis = _check("metis::inverse_hadamard", x, axis, signs)
    shape = list(x.shape)
    shape[axis] = length
    return x.new_empty(shape, dtype=torch.float32)


def _check(op: str, x: Tensor, axis: int, signs: Tensor | None) -> int:
    """`axis` from 0. Raises TypeError, ValueError or IndexError that names the argument and what is supported."""
    check_dtype(op, "x", x, *FLOATS)
    if signs is not None:
        check_dtype(op, "signs", signs, torch.float32)
        if signs.dim() != 1 or signs.shape[0] not in SIZES:
            shapes = ", ".join(f"[{size}]" for size in SIZES)
            raise ValueError(f"{op}: signs must have one of the shapes {shapes}, got {list(signs.shape)}")
        check_device(op, "signs", signs, x)
    return axis_of(op, axis, x.dim())


def _size_of(signs: Any) -> int:
    """How many elements a transform with these signs mixes. signs: a tensor, its shape, or None."""
    return SIZE if signs is None else int(getattr(signs, "shape", signs)[0])


@register_flop_formula(torch.ops.metis.hadamard)
def _hadamard_flops(x: Any, axis: int, signs: Any = None, *, out_shape: Any = None) -> int:
    return 2 * math.prod(out_shape) * _size_of(signs)


@register_flop_formula(torch.ops.metis.inverse_hadamard)
def _inverse_hadamard_flops(x: Any, axis: int, length: int, signs: Any = None, *, out_shape: Any = None) -> int:
    return 2 * math.prod(x) * _size_of(signs)


HADAMARD = torch.ops.metis.hadamard.default
INVERSE_HADAMARD = torch.ops.metis.inverse_hadamard.default
