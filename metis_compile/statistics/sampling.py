"""Which part of an operand is looked at: whole vectors along the contracted axis, evenly spaced.

A vector holds whole blocks, so that what is looked at is quantized as all of the operand is; the one with the largest
magnitude is always among them, so that a scale of the whole tensor is the same too. Of square blocks, whole rows of
blocks are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.numerics import QuantSpec

__all__ = ["as_matrix", "vector_numbers"]


def as_matrix(x: Tensor, spec: QuantSpec, axis: int) -> tuple[Tensor, int]:
    """An operand as a matrix and its contracted axis; as it is where blocks are squares of a batch of matrices.

    x: two dimensions or more. The leading ones of a batch and the one that is not contracted become rows.
    """
    axis %= x.dim()
    is_square = spec.block_shape is not None and spec.block_shape[0] > 1
    if x.dim() == 2 or is_square:
        return x, axis
    return x.movedim(axis, -1).flatten(0, -2), 1


def vector_numbers(x: Tensor, spec: QuantSpec, axis: int, most: int | None) -> Tensor | None:
    """Which vectors of a matrix are looked at, int64, ascending; None for all of them.

    x: what is quantized, [rows, columns]. axis: that which is contracted. most: about how many vectors.
    """
    if most is None or x.dim() != 2 or x.shape[1 - axis] <= most or 0 in x.shape:
        return None
    size = spec.block_shape[0] if spec.block_shape is not None else 1  # vectors that share their blocks
    groups = (x.shape[1 - axis] + size - 1) // size
    step = -(-groups // max(1, most // size))
    magnitudes = torch.maximum(-torch.amin(x, axis), torch.amax(x, axis))  # aminmax along a dimension is no vector code
    outlier = torch.argmax(torch.where(magnitudes == magnitudes, magnitudes, torch.inf)) // size
    chosen = torch.zeros(groups, dtype=torch.bool, device=x.device)
    chosen[::step] = True
    chosen[outlier] = True
    return chosen.repeat_interleave(size)[: x.shape[1 - axis]].nonzero()[:, 0]
