"""Block scales in the order in which tensor cores of compute capability 10.x take them.

    tile (i, j), 512 bytes: the scales of rows 128 i to 128 i + 127, blocks 4 j to 4 j + 3 along k
    byte (r % 32) * 16 + (r // 32) * 4 + c of a tile: the scale at (r, c) of it

Rows are those of an operand of a product, k is what the product contracts. What fills the last tiles up is zero: behind
the end of k codes are 0 too, and 0 under a scale of NaN would be NaN. Which of the two orders scales have is told by
their dimensions alone: swizzled ones have three more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metis_compile.numerics.blocks import pad_to_multiple, take_first
from metis_compile.numerics.formats import QuantSpec

__all__ = ["TILE_BLOCKS", "TILE_ROWS", "can_swizzle", "is_swizzled", "swizzle", "swizzled_shape", "unswizzle"]

TILE_ROWS, TILE_BLOCKS = 128, 4
BANDS = 4  # of 32 rows, side by side in a tile


def can_swizzle(spec: QuantSpec) -> bool:
    """Whether the format has scales of one byte, each of a block of one row."""
    return spec.fmt.scale_dtype.itemsize == 1 and spec.block_shape is not None and spec.block_shape[0] == 1


def swizzled_shape(shape: Sequence[Any], axis: int) -> list[Any]:
    """[*batch, rows / 128, blocks / 4, 32, 4, 4], of the shape of scales whose blocks lie along `axis`.

    axis: one of the last two. The other one of them is the rows.
    """
    blocks = axis % len(shape)
    rows = 2 * len(shape) - 3 - blocks
    return [
        *shape[:-2],
        (shape[rows] + TILE_ROWS - 1) // TILE_ROWS,
        (shape[blocks] + TILE_BLOCKS - 1) // TILE_BLOCKS,
        TILE_ROWS // BANDS,
        BANDS,
        TILE_BLOCKS,
    ]


def is_swizzled(spec: QuantSpec, ndim: int, scales_ndim: int) -> bool:
    """Whether block scales of so many dimensions are swizzled. ndim: of the codes."""
    return can_swizzle(spec) and scales_ndim == ndim + 3


def swizzle(scales: Tensor, axis: int) -> Tensor:
    """Scales of one byte, in any dtype, as :func:`swizzled_shape` says; contiguous."""
    stored = scales.view(torch.uint8)
    if axis % scales.dim() == scales.dim() - 2:
        stored = stored.mT
    dim = stored.dim() - 2
    stored = pad_to_multiple(pad_to_multiple(stored, dim, TILE_ROWS), dim + 1, TILE_BLOCKS)
    rows, blocks = stored.shape[dim] // TILE_ROWS, stored.shape[dim + 1] // TILE_BLOCKS
    tiles = stored.unflatten(dim + 1, (blocks, TILE_BLOCKS)).unflatten(dim, (rows, BANDS, TILE_ROWS // BANDS))
    # [*batch, rows, band, row of a band, blocks, block]
    order = [*range(dim), dim, dim + 3, dim + 2, dim + 1, dim + 4]
    return tiles.permute(order).contiguous().view(scales.dtype)


def unswizzle(swizzled: Tensor, shape: Sequence[Any], axis: int) -> Tensor:
    """The inverse: scales of this shape, whose blocks lie along `axis`, one of the last two."""
    dim, blocks = len(shape) - 2, axis % len(shape)
    order = [*range(dim), dim, dim + 3, dim + 2, dim + 1, dim + 4]
    stored = swizzled.view(torch.uint8).permute(order).flatten(dim + 3, dim + 4).flatten(dim, dim + 2)
    stored = take_first(take_first(stored, dim, shape[2 * len(shape) - 3 - blocks]), dim + 1, shape[blocks])
    return (stored if blocks == dim + 1 else stored.mT.contiguous()).view(swizzled.dtype)
