"""A product as a tensor core of Blackwell was found to sum it: an option of the reference, for small products.

Graphs, C++ kernels and Triton templates sum in float32 in some order, and the tests hold them to exact sums. arXiv
2609.02846 (section 6) gives the rules that reproduce native NVFP4 outputs bit for bit, in all its probes and in 100
steps of a model of 1.3B parameters:

    p_j     = float32_to_nearest(sum over the j-th 64 elements of a b)         exact before it is rounded
    c_0     = 0,   c_j+1 = float32_toward_zero(c_j + p_j)                      in order along k
    y       = alpha c_J                                                        alpha: the product of both tensor scales

What its emulator does besides, rounding c_J to multiples of 1/1024, changed none of its outputs, and is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64  # elements of k that are summed at once


def tensor_core_product(a: Tensor, b: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    """A B^T, float32 [m, n], summed as above.

    a: [m, k], b: [n, k], float32: elements times their block scales, without the scale of the tensor. Sums of 64 of
    their products have to be exact in float64, as those of NVFP4 are. Takes the time of a float64 product. Raises
    ValueError for other shapes.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must be [m, k] and [n, k], got {tuple(a.shape)} and {tuple(b.shape)}")
    total = a.new_zeros((a.shape[0], b.shape[0]), dtype=torch.float32)
    for start in range(0, a.shape[1], GROUP):
        of_a, of_b = (x[:, start : start + GROUP].to(torch.float64) for x in (a, b))
        total = sum_toward_zero(total, (of_a @ of_b.mT).to(torch.float32))
    return total * alpha


def sum_toward_zero(a: Tensor, b: Tensor) -> Tensor:
    """a + b of float32, rounded toward zero: the nearest sum, or one step back where that lies beyond the exact one."""
    nearest = a + b
    of_b = nearest - a  # Knuth's two-sum: what the sum lost, exactly
    lost = (a - (nearest - of_b)) + (b - of_b)
    beyond = (lost != 0) & (torch.signbit(lost) != torch.signbit(nearest))
    return torch.where(beyond, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)
