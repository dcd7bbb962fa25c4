"""The error of a quantized product, told from some of its elements.

Of a product [batch, m, k] @ [batch, k, n] with all of its tails, PICKED rows and columns, evenly spaced, of BATCHES
matrices are computed again from the operands as they were before they were split and quantized.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PICKED", "left_block", "product_error", "result_block", "right_block"]

PICKED = 32  # rows, and columns
BATCHES = 4  # of a batch of matrices


def left_block(left: Tensor) -> Tensor:
    """The rows of [..., m, k] that are looked at."""
    return _pick(_batches(left), -2)


def right_block(right: Tensor) -> Tensor:
    """The columns of [..., k, n] that are looked at."""
    return _pick(_batches(right), -1)


def result_block(result: Tensor) -> Tensor:
    """The elements of [..., m, n] that are looked at."""
    return _pick(_pick(_batches(result), -2), -1)


def product_error(
    result: Tensor, left: Tensor, right: Tensor, added: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """|| result - beta added - alpha left right || / || alpha left right ||, float32 of no dimensions.

    Each as its `..._block` gives it; added: what broadcasts to the result. 0 where the product is zero and so is what
    differs.
    """
    exact = alpha * torch.matmul(left.to(torch.float64), right.to(torch.float64))
    differs = result.to(torch.float64) - exact
    if added is not None:
        differs = differs - beta * added.to(torch.float64)
    size, lost = torch.linalg.vector_norm(exact), torch.linalg.vector_norm(differs)
    return torch.where(lost == 0, 0.0, lost / size).to(torch.float32)


def _batches(x: Tensor) -> Tensor:
    return _pick(x, 0, BATCHES) if x.dim() > 2 else x


def _pick(x: Tensor, dim: int, most: int = PICKED) -> Tensor:
    length = x.shape[dim]
    if length <= most:
        return x
    return x.index_select(dim, torch.arange(0, length, -(-length // most), device=x.device))
