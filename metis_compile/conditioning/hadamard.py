"""The Hadamard transform of 16 elements, or more, with random signs, along the axis that a GEMM contracts.

    x -> x H in blocks of n along the axis,   H = diag(signs) Hn / sqrt(n),   Hn[i, j] = (-1)^popcount(i & j)

H is orthogonal: applied to both operands of a GEMM along their contraction axis, with the same signs, it cancels. A
quantizer in between sees each outlier spread over its block. Source: arXiv 2509.25149 (one fixed vector of signs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.numerics import uniform_noise
from metis_compile.numerics.blocks import normalize_axis, pad_to_multiple

SIZE = 16  # unless another is asked for
SIZES = (16, 32, 64, 128)
SIGNS = ("fixed", "fresh")
FIXED_SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)  # drawn once; any would do


def signs_from(seed: Tensor, stream: int = 0, size: int = SIZE) -> Tensor:
    """[size] float32 of +1 and -1, a function of seed (int64, one element) and stream alone."""
    return torch.where(uniform_noise(seed, stream, [size]) < 0.5, 1.0, -1.0)


def fixed_signs(device: torch.device | None = None, size: int = SIZE) -> Tensor:
    """[size] float32: the signs that never change, the same 16 over and over.

    Made from a number, so that tracing needs no constant tensor.
    """
    negative = sum(1 << i for i, sign in enumerate(FIXED_SIGNS) if sign < 0)
    place = torch.arange(size, device=device)
    place = place if size == len(FIXED_SIGNS) else place % len(FIXED_SIGNS)
    return 1.0 - 2.0 * ((negative >> place) & 1).to(torch.float32)


def hadamard(x: Tensor, axis: int, signs: Tensor) -> Tensor:
    """x in blocks along `axis`, each times H.

    x: any shape; goes to float32. signs: [n] for blocks of n, one of SIZES, from :func:`fixed_signs` or
    :func:`signs_from`; the same for both operands. The result is float32 of x's shape with the axis rounded up to a
    multiple of n: a short last block is filled up with zeros, which the transform spreads, so that the other operand
    has to be as long too. Raises IndexError for an axis out of range.
    """
    axis, size = normalize_axis(axis, x.dim()), signs.shape[0]
    x = pad_to_multiple(x.to(torch.float32), axis, size)
    blocks = x.unflatten(axis, (x.shape[axis] // size, size)).movedim(axis + 1, -1)
    return torch.matmul(blocks, matrix(signs)).movedim(-1, axis + 1).flatten(axis, axis + 1)


def inverse_hadamard(x: Tensor, axis: int, signs: Tensor, length: int) -> Tensor:
    """The inverse of :func:`hadamard`, float32. length: what the axis had before it was filled up to blocks."""
    axis, size = normalize_axis(axis, x.dim()), signs.shape[0]
    blocks = x.unflatten(axis, (x.shape[axis] // size, size)).movedim(axis + 1, -1)
    plain = torch.matmul(blocks, matrix(signs).mT).movedim(-1, axis + 1).flatten(axis, axis + 1)
    return plain.narrow(axis, 0, length)


def matrix(signs: Tensor) -> Tensor:
    """[n, n] float32: diag(signs) Hn / sqrt(n), of [n] signs."""
    size = signs.shape[0]
    index = torch.arange(size, device=signs.device)
    common = index[:, None] & index
    parity = common
    for shift in range(1, size.bit_length() - 1):
        parity = parity ^ (common >> shift)
    parity, norm = parity & 1, size**-0.5
    return signs[:, None] * (norm - 2 * norm * parity.to(torch.float32))
