"""Random numbers and rows for a sketch: counter-based, the same eagerly, compiled and when computed again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.numerics import uniform_noise

SKETCHES = ("gaussian", "signs")


def sketch_matrix(kind: str, shape: Sequence[int], seed: Tensor, stream: int, other_stream: int) -> Tensor:
    """float32, independent of mean 0 and variance 1: "gaussian" (Box and Muller, of two streams) or "signs"."""
    u = uniform_noise(seed, stream, shape)
    if kind == "signs":
        return torch.where(u < 0.5, 1.0, -1.0)
    angle = uniform_noise(seed, other_stream, shape) * (2 * math.pi)
    return torch.sqrt(-2 * torch.log(1 - u)) * torch.cos(angle)  # 1 - u is exact, and never 0


def sample_rows(x: Tensor, share: float, least: int, seed: Tensor, stream: int) -> Tensor:
    """About `share` of the rows of x, at least `least` where there are so many: one at random from each equal stretch.

    The number of rows, also a symbolic one, may be anything.
    """
    rows = x.shape[0]
    if share == 1 or statically_known_true(rows <= least):
        return x
    count = sampled_rows(rows, share, least)
    index = torch.arange(count, dtype=torch.int64, device=x.device)
    first, behind = index * rows // count, (index + 1) * rows // count
    step = (uniform_noise(seed, stream, [count]) * (behind - first).to(torch.float32)).to(torch.int64)
    return x.index_select(0, torch.minimum(first + step, behind - 1))


def sampled_rows(rows: int, share: float, least: int) -> int:
    """How many of so many rows :func:`sample_rows` takes."""
    part = Fraction(share).limit_denominator(10**6)
    wanted = (rows * part.numerator + part.denominator - 1) // part.denominator
    return torch.sym_min(rows, torch.sym_max(wanted, least))  # type: ignore[no-any-return]
