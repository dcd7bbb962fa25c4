"""The largest magnitude of what is quantized, where that is made in registers and stored nowhere.

NVFP4's tensor scale has to be known before the first block is rounded, so that x is read twice: here, and by the
quantization, which makes the same tiles by the same code.
"""

from __future__ import annotations

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from metis_compile.kernels.quantize.blocks import larger
from metis_compile.kernels.quantize.conditioned import conditioned_tile
from metis_compile.kernels.quantize.source import Source
from metis_compile.kernels.quantize.tiles import tile_for
from metis_compile.numerics import QuantSpec

NVFP4 = QuantSpec.make("nvfp4")  # the format that needs it


@triton.jit
def tiles_amax_kernel(
    x,
    mean,
    thin_left,
    thin_right,
    signs,
    out,
    rows,
    columns,
    rank,
    SUBTRACT: tl.constexpr,
    RANK: tl.constexpr,
    HADAMARD: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    tiles_across = tl.cdiv(columns, TILE_COLUMNS)
    tiles_down = tl.cdiv(rows, TILE_ROWS)
    program = tl.program_id(0)
    batch = (program // (tiles_across * tiles_down)).to(tl.int64)
    top = ((program // tiles_across) % tiles_down) * TILE_ROWS
    left = (program % tiles_across) * TILE_COLUMNS
    start = (batch * rows + top) * columns + left
    tile = conditioned_tile(
        x, mean, thin_left, thin_right, signs, start, top, left, rows, columns, rank,
        SUBTRACT, RANK, HADAMARD, TILE_ROWS, TILE_COLUMNS,
    )  # fmt: skip
    largest = tl.reduce(tl.reshape(tl.abs(tile), (TILE_ROWS * TILE_COLUMNS,)), 0, larger)
    # The bits of what is not negative are in its order, and those of NaN above all.
    tl.atomic_max(out.to(tl.pointer_type(tl.int32)), largest.to(tl.int32, bitcast=True), sem="relaxed")


def tiles_amax(source: Source, axis: int) -> Tensor:
    """0-dim float32: the largest magnitude of `source`; NaN if an element is, 0 of no elements.

    axis: from 0, along which the transform goes, where there is one. `source.check_amax` has seen both.
    """
    x = source.x
    out = torch.zeros((), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return out
    columns = x.shape[-1]
    if source.signs is not None and axis == x.dim() - 2:
        batch, rows = prod(x.shape[:-2]), x.shape[-2]
    else:
        batch, rows = 1, x.numel() // columns
    constants = source.constants(axis)
    tile = tile_for(NVFP4, columns, x.dtype.itemsize, source.rank, constants["HADAMARD"])
    grid = (batch * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),)
    tiles_amax_kernel[grid](
        *source, out, rows, columns, source.rank,
        **constants,
        TILE_ROWS=tile.rows,
        TILE_COLUMNS=tile.columns,
        num_warps=tile.warps,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out
