"""What a split leaves of a matrix, as one operator: the plain torch of `metis_compile.conditioning.residual`.

`metis::residual(x, mean?, left?, right?)` is float32 x - mean - left right, [rows, columns]: of the mean and the two
factors at least one is there. Written out in a graph it is a difference or two and a product, which a kernel that
subtracts by itself would have to find again. torch.utils.flop_counter knows its product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from metis_compile.conditioning.operators import using
from metis_compile.conditioning.residual import residual
from metis_compile.ops.checks import check_device, check_dtype, check_shape

__all__ = ["RESIDUAL", "check_residual"]

OP = "metis::residual"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_library = torch.library.Library("metis", "FRAGMENT")
_library.define(
    "residual(Tensor x, Tensor? mean=None, Tensor? left=None, Tensor? right=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _residual(x: Tensor, mean: Tensor | None = None, left: Tensor | None = None, right: Tensor | None = None) -> Tensor:
    """Strides are those of what it is written out as: real and fake tensors are subtracted alike."""
    check_residual(x, mean, left, right)
    with using(None):
        return residual(x, mean, left, right)


torch.library.impl(_library, "residual", "CompositeExplicitAutograd")(_residual)
torch.library.register_fake(OP, _residual, lib=_library)


def check_residual(x: Tensor, mean: Tensor | None, left: Tensor | None, right: Tensor | None) -> None:
    """Raises TypeError or ValueError that names the argument and what is supported."""
    check_dtype(OP, "x", x, *FLOATS)
    if x.dim() != 2:
        raise ValueError(f"{OP}: x must be a matrix [rows, columns], got {x.dim()} dimensions")
    if left is not None and left.dim() != 2:
        raise ValueError(f"{OP}: left must be a matrix [rows, k], got {left.dim()} dimensions")
    if (left is None) != (right is None):
        raise ValueError(f"{OP}: left and right must both be given or both be None, got one of them")
    if mean is None and left is None:
        raise ValueError(f"{OP}: mean or factors must be given, got neither")
    rank = 0 if left is None else left.shape[1]
    shapes = {"mean": (mean, [1, x.shape[1]]), "left": (left, [x.shape[0], rank]), "right": (right, [rank, x.shape[1]])}
    for name, (tensor, shape) in shapes.items():
        if tensor is not None:
            check_dtype(OP, name, tensor, torch.float32)
            check_shape(OP, name, tensor, shape)
            check_device(OP, name, tensor, x)


@register_flop_formula(torch.ops.metis.residual)
def _flops(x: Any, mean: Any = None, left: Any = None, right: Any = None, *, out_shape: Any = None) -> int:
    return 0 if left is None else 2 * left[0] * left[1] * right[1]


RESIDUAL = torch.ops.metis.residual.default
