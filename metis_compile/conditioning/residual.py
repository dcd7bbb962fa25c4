"""What a split leaves of a matrix: x minus a row, minus a product of two thin factors."""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.conditioning.operators import operators


def residual(x: Tensor, mean: Tensor | None = None, left: Tensor | None = None, right: Tensor | None = None) -> Tensor:
    """x - mean - left @ right, [rows, columns] float32.

    x: [rows, columns] floating-point. mean: [1, columns] float32. left: [rows, k] and right: [k, columns], float32;
    both or neither. Compiled, it is one operator, which kernels that quantize take as it is: what a conditioning of
    your own would otherwise subtract is stored first.
    """
    installed = operators()
    if installed is not None:
        return installed.residual(x, mean, left, right)
    x = x.to(torch.float32)
    if mean is not None:
        x = x - mean
    return x if left is None or right is None else x - torch.mm(left, right)
