"""Tiles of what is quantized, made in registers from what lies in memory: `metis_compile.conditioning`, in Triton.

    tile = (x - mean - left right) H        in this order, float32; each of the three may be missing: see `source`

mean is a row, left [rows, rank] and right [rank, columns] are thin, and H is `conditioning/hadamard.py`'s in blocks of
16 along one axis. Nothing of it is ever stored: what is left of a tensor is read by its quantization alone.

A thin product and a transform are sums in an order of this file's own, as any library's are in one of its own. Products
are exact: those of bfloat16 factors, and those with H's entries. Float32 factors are multiplied as three products of
tf32.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
