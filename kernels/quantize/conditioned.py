"""Tiles of what is quantized, made in registers from what lies in memory: `metis_compile.conditioning`, in Triton.

    tile = (x - mean - left right) H        in this order, float32; each of the three may be missing

mean is a row, left [rows, rank] and right [rank, columns] are thin, and H is `conditioning/hadamard.py`'s in blocks of
16 along one axis. Nothing of it is ever stored: what is left of a tensor is read by its quantization alone.

A thin product and a transform are sums in an order of this file's own, as any library's are in one of its own. Products
are exact: those of bfloat16 factors, and those with H's entries. Float32 factors are multiplied as three products of
tf32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INPUTS = (torch.float32, torch.bfloat16, torch.float16)
FACTORS = (torch.float32, torch.bfloat16)


class Source(NamedTuple):
    """What is quantized: (x - mean - left @ right) H, all tensors contiguous.

    x: float32, bfloat16 or float16. mean: float32, as long as x's last dimension. left, right: [rows, rank] and
    [rank, columns] for x [rows, columns], both float32 or both bfloat16. signs: 16 float32, those of H.
    """

    x: Tensor
    mean: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    signs: Tensor | None = None

    @property
    def rank(self) -> int:
        """Columns of the left factor, 0 without one."""
        return 0 if self.left is None else self.left.shape[1]

    @property
    def made(self) -> bool:
        """Whether it takes more than loading x and subtracting a row."""
        return self.left is not None or self.signs is not None

    def constants(self, axis: int) -> dict[str, Any]:
        """Those of `conditioned_tile`. axis: of the transform, if any, from 0."""
        last = self.x.dim() - 1
        return {
            "SUBTRACT": self.mean is not None,
            "RANK": 0 if self.left is None else 16 if self.rank <= 16 else 32,
            "HADAMARD": None if self.signs is None else 1 if axis == last else 0,
        }

    def check(self, op: str) -> None:
        """Raises TypeError or ValueError for tensors that don't go together."""
        x, mean, left, right, signs = self
        if x.dtype not in INPUTS:
            raise TypeError(f"{op}: x must be float32, bfloat16 or float16, got {x.dtype}")
        for name, tensor in zip(self._fields, self, strict=True):
            if tensor is not None and not tensor.is_contiguous():
                raise ValueError(
                    f"{op}: {name} must be contiguous, got strides {tensor.stride()} for shape {tuple(tensor.shape)}"
                )
        if x.device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise ValueError(f"{op}: x must be on a CUDA device, got {x.device}")
        if mean is not None and (mean.dtype != torch.float32 or mean.numel() != x.shape[-1]):
            raise ValueError(
                f"{op}: mean must be {x.shape[-1]} float32, one for each column of x, got {mean.numel()} {mean.dtype}"
            )
        if (left is None) != (right is None):
            raise ValueError(f"{op}: left and right must be given together, got {'right' if left is None else 'left'}")
        if left is not None and right is not None:
            if left.dtype not in FACTORS or left.dtype != right.dtype:
                raise TypeError(
                    f"{op}: left and right must both be float32 or bfloat16, got {left.dtype} and {right.dtype}"
                )
            if x.dim() != 2 or (*left.shape, x.shape[1]) != (x.shape[0], *right.shape):
                raise ValueError(
                    f"{op}: left and right must be [rows, rank] and [rank, columns] for x [rows, columns], "
                    f"got {list(left.shape)} and {list(right.shape)} for {list(x.shape)}"
                )
        if signs is not None and (signs.dtype != torch.float32 or signs.numel() != 16):
            raise ValueError(f"{op}: signs must be 16 float32, got {signs.numel()} {signs.dtype}")

    def check_transform(self, op: str, axes: Sequence[int]) -> None:
        """Raises ValueError where the transform does not go along the one axis of `axes`, in whole blocks."""
        axis, last = axes[0], self.x.dim() - 1
        if len(axes) > 1 or axis < last - 1:
            raise ValueError(f"{op}: axes must be one of the last two with signs, got {list(axes)}")
        length = self.x.shape[axis]
        if length % 16:
            raise ValueError(f"{op}: x must have a multiple of 16 along axis {axis} with signs, got {length}")


@triton.jit
def conditioned_tile(
    x,
    mean,
    thin_left,
    thin_right,
    signs,
    start,
    top,
    left,
    rows,
    columns,
    rank,
    SUBTRACT: tl.constexpr,
    RANK: tl.constexpr,
    HADAMARD: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """fp32 [HEIGHT, WIDTH] at (top, left) of a matrix whose tile is `start` elements into x; 0 outside of it.

    SUBTRACT: whether there is a mean. RANK: of how many columns a step of the thin product is, 0 for none. HADAMARD:
    the axis of the transform, None for none; then the matrix ends between two blocks of 16.
    """
    m, n = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)
    inside_m, inside_n = top + m < rows, left + n < columns
    inside = inside_m[:, None] & inside_n[None, :]
    offsets = m[:, None].to(tl.int64) * columns + n[None, :]
    tile = tl.load(x + start + offsets, mask=inside, other=0.0).to(tl.float32)
    if SUBTRACT:
        tile = tl.where(inside, tile - tl.load(mean + left + n, mask=inside_n, other=0.0)[None, :], 0.0)
    if RANK > 0:
        product = tl.zeros((HEIGHT, WIDTH), tl.float32)
        thin_left += top.to(tl.int64) * rank
        for step in range(0, rank, RANK):
            r = step + tl.arange(0, RANK)
            u = tl.load(
                thin_left + m[:, None] * rank + r[None, :], mask=inside_m[:, None] & (r < rank)[None, :], other=0.0
            )
            s = tl.load(
                thin_right + r[:, None].to(tl.int64) * columns + (left + n)[None, :],
                mask=(r < rank)[:, None] & inside_n[None, :],
                other=0.0,
            )
            product = tl.dot(u, s, product, input_precision="tf32x3")
        tile = tl.where(inside, tile - product, 0.0)
    if HADAMARD is not None:
        tile = transformed(tile, signs, HADAMARD, HEIGHT, WIDTH)
    return tile


@triton.jit
def transformed(tile, signs, AXIS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """A tile times H = diag(signs) H16 / 4 in blocks of 16 along AXIS: four steps of sums and differences of pairs."""
    factor = tl.load(signs + tl.arange(0, HEIGHT if AXIS == 0 else WIDTH) % 16) * 0.25
    if AXIS == 0:
        blocks = tl.permute(tl.reshape(tile * factor[:, None], (HEIGHT // 16, 16, WIDTH)), (0, 2, 1))
    else:
        blocks = tile * factor[None, :]
    blocks = tl.reshape(blocks, (HEIGHT * WIDTH // 16, 2, 2, 2, 2))
    for _ in tl.static_range(4):
        low, high = tl.split(blocks)
        blocks = tl.permute(tl.join(low + high, low - high), (0, 4, 1, 2, 3))
    if AXIS == 0:
        return tl.reshape(tl.permute(tl.reshape(blocks, (HEIGHT // 16, WIDTH, 16)), (0, 2, 1)), (HEIGHT, WIDTH))
    return tl.reshape(blocks, (HEIGHT, WIDTH))
