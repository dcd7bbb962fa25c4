"""Quantization in blocks of 16, 32 or 128 in one read of a tensor: blocks along its rows, along its columns, or both.

A program takes a tile whose sides are multiples of the block, so that blocks of both orientations are complete in it.
`metis_compile.numerics.encode` is the definition, and gives the same bytes:

    multiplier, scale = f(largest magnitude of the block, and of the tensor where the format has a tensor scale)
    code = round(tile * multiplier)                                       two E2M1 codes to a byte along the block

What is quantized may be made in registers first, of x and thin things: see `conditioned`.

On the width of a tile: with warps next to each other, each thread loading 16 bytes at a time, a thread holds all rows
of its columns. Blocks of 16 along columns then lie in one thread, blocks along rows in two or four neighbours, and only
scales and what stores gather go through shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from metis_compile.kernels.quantize.blocks import encode_blocks
from metis_compile.kernels.quantize.conditioned import conditioned_tile
from metis_compile.kernels.quantize.constants import constants_of
from metis_compile.kernels.quantize.noise import noise_in, stream_key
from metis_compile.kernels.quantize.scales import encode_scale, scale_multipliers
from metis_compile.kernels.quantize.source import Source
from metis_compile.kernels.quantize.stores import store_column_codes, store_row_codes, store_scales
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.quantize import part_shapes


class Tile(NamedTuple):
    """What one program takes of a tensor [batch, rows, columns]."""

    rows: int
    columns: int
    warps: int


def tile_for(spec: QuantSpec, columns: int, itemsize: int, rank: int = 0, hadamard: int | None = None) -> Tile:
    """The tile for rows of so many columns. More elements would not fit the registers of a thread.

    rank: of the thin product, 0 without one: tensor cores give it in a layout of their own, and taller tiles read the
    right factor less often. hadamard: the axis of the transform, if any; along columns all of a block has to be in one
    thread.
    """
    assert spec.block_shape is not None
    block = spec.block_shape[1]
    if block == 128:
        return Tile(128, 128, 8)
    if rank:
        return Tile(64, 128, 4)
    simple = hadamard is None and not spec.needs_noise and spec.select is None
    elements = 128 if itemsize == 2 and (simple or hadamard == 0) else 64  # of a thread
    across = 32 * elements // block  # columns of a warp
    warps = next((w for w in (4, 2) if w * across <= columns), 1)
    return Tile(block, across * warps, warps)


@triton.jit(do_not_specialize=["row_stream", "column_stream"])
def quantize_tiles_kernel(
    x,
    mean,
    thin_left,
    thin_right,
    signs,
    amax,
    seed,
    row_codes,
    row_scales,
    column_codes,
    column_scales,
    tensor_scale,
    rows,
    columns,
    packed_columns,
    scale_columns,
    rank,
    row_stream,
    column_stream,
    BLOCK: tl.constexpr,
    SQUARE: tl.constexpr,
    BITS: tl.constexpr,
    PAIRED: tl.constexpr,
    MANTISSA: tl.constexpr,
    LEAST: tl.constexpr,
    LARGEST: tl.constexpr,
    INVERSE_LARGEST: tl.constexpr,
    MAX_EXPONENT: tl.constexpr,
    NAN: tl.constexpr,
    SCALE: tl.constexpr,
    SCALE_COUNT: tl.constexpr,
    SCALE_MANTISSA: tl.constexpr,
    SCALE_LEAST: tl.constexpr,
    SCALE_LARGEST: tl.constexpr,
    SCALE_LARGEST_CODE: tl.constexpr,
    SCALE_NAN: tl.constexpr,
    TARGET: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    ROUNDING: tl.constexpr,
    ROUND_UP: tl.constexpr,
    GUARD_FACTOR: tl.constexpr,
    SELECT: tl.constexpr,
    SUM_ANCHOR: tl.constexpr,
    CARRY: tl.constexpr,
    INSTRUCTION: tl.constexpr,
    ALONG_ROWS: tl.constexpr,
    ALONG_COLUMNS: tl.constexpr,
    ROW_SWIZZLED: tl.constexpr,
    COLUMN_SWIZZLED: tl.constexpr,
    SUBTRACT: tl.constexpr,
    RANK: tl.constexpr,
    HADAMARD: tl.constexpr,
    WIDE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    KNOWN: tl.constexpr = ROUNDING == "nearest" or ROUNDING == "stochastic" or ROUNDING == "eden"
    tl.static_assert(KNOWN, "ROUNDING must be 'nearest', 'stochastic' or 'eden'")
    tiles_across = tl.cdiv(columns, TILE_COLUMNS)
    tiles_down = tl.cdiv(rows, TILE_ROWS)
    program = tl.program_id(0)
    batch = (program // (tiles_across * tiles_down)).to(tl.int64)
    top = ((program // tiles_across) % tiles_down) * TILE_ROWS
    left = (program % tiles_across) * TILE_COLUMNS

    start = (batch * rows + top) * columns + left  # of the tile, in elements
    tile = conditioned_tile(
        x, mean, thin_left, thin_right, signs, start, top, left, rows, columns, rank,
        SUBTRACT, RANK, HADAMARD, TILE_ROWS, TILE_COLUMNS,
    )  # fmt: skip

    enc, dec, multipliers, key_low, key_high = 1.0, 1.0, 1.0, 0, 0
    if SCALE == "minifloat":
        enc = encode_scale(tl.load(amax), TARGET)
        dec = tl.div_rn(1.0, enc)
        multipliers = scale_multipliers(dec, SCALE_COUNT, SCALE_MANTISSA, SCALE_LEAST, SCALE_LARGEST_CODE)
        if program == 0:
            tl.store(tensor_scale, dec)

    block_rows = tl.cdiv(rows, BLOCK)
    block_top, block_left = batch * block_rows + top // BLOCK, left // BLOCK
    HEIGHT: tl.constexpr = TILE_ROWS // BLOCK
    WIDTH: tl.constexpr = TILE_COLUMNS // BLOCK
    if SQUARE:
        SHAPE: tl.constexpr = (HEIGHT, BLOCK, WIDTH, BLOCK)
        noise = tile
        if ROUNDING != "nearest":
            key_low, key_high = stream_key(tl.load(seed), row_stream)
        if ROUNDING == "stochastic":
            noise = noise_in(start, columns, key_low, key_high, TILE_ROWS, TILE_COLUMNS, WIDE)
            noise = tl.reshape(noise, SHAPE)
        elif ROUNDING == "eden":
            first = block_top * scale_columns + block_left
            noise = noise_in(first, scale_columns, key_low, key_high, HEIGHT, WIDTH, WIDE)
            noise = tl.reshape(noise, (HEIGHT, 1, WIDTH, 1))
        codes, stored = encode_blocks(
            tl.reshape(tile, SHAPE), noise, enc, dec, multipliers, 3, True,
            BITS, MANTISSA, LEAST, LARGEST, INVERSE_LARGEST, MAX_EXPONENT, NAN,
            SCALE, SCALE_MANTISSA, SCALE_LEAST, SCALE_LARGEST, SCALE_NAN, POWER_OF_TWO,
            ROUNDING, ROUND_UP, GUARD_FACTOR, SELECT, SUM_ANCHOR, CARRY, INSTRUCTION,
        )  # fmt: skip
        codes = tl.reshape(codes, (TILE_ROWS, TILE_COLUMNS))
        stored = tl.reshape(stored, (HEIGHT, WIDTH))
        if ALONG_ROWS:
            store_row_codes(
                row_codes, codes, batch, top, left, rows, columns, packed_columns, PAIRED, TILE_ROWS, TILE_COLUMNS
            )
            store_scales(
                row_scales, stored, batch, top // BLOCK, block_left, block_rows, scale_columns,
                HEIGHT, WIDTH, False, False,
            )  # fmt: skip
        if ALONG_COLUMNS:
            store_column_codes(column_codes, codes, batch, top, left, rows, columns, PAIRED, TILE_ROWS, TILE_COLUMNS)
            store_scales(
                column_scales, stored, batch, top // BLOCK, block_left, block_rows, scale_columns,
                HEIGHT, WIDTH, False, False,
            )  # fmt: skip
    else:
        if ALONG_ROWS:
            ACROSS: tl.constexpr = (TILE_ROWS, WIDTH, BLOCK)
            row = batch * rows + top
            noise = tile
            if ROUNDING != "nearest":
                key_low, key_high = stream_key(tl.load(seed), row_stream)
            if ROUNDING == "stochastic":
                noise = noise_in(start, columns, key_low, key_high, TILE_ROWS, TILE_COLUMNS, WIDE)
                noise = tl.reshape(noise, ACROSS)
            elif ROUNDING == "eden":
                first = row * scale_columns + block_left
                noise = noise_in(first, scale_columns, key_low, key_high, TILE_ROWS, WIDTH, WIDE)
                noise = tl.reshape(noise, (TILE_ROWS, WIDTH, 1))
            codes, stored = encode_blocks(
                tl.reshape(tile, ACROSS), noise, enc, dec, multipliers, 2, False,
                BITS, MANTISSA, LEAST, LARGEST, INVERSE_LARGEST, MAX_EXPONENT, NAN,
                SCALE, SCALE_MANTISSA, SCALE_LEAST, SCALE_LARGEST, SCALE_NAN, POWER_OF_TWO,
                ROUNDING, ROUND_UP, GUARD_FACTOR, SELECT, SUM_ANCHOR, CARRY, INSTRUCTION,
            )  # fmt: skip
            codes = tl.reshape(codes, (TILE_ROWS, TILE_COLUMNS))
            stored = tl.reshape(stored, (TILE_ROWS, WIDTH))
            store_row_codes(
                row_codes, codes, batch, top, left, rows, columns, packed_columns, PAIRED, TILE_ROWS, TILE_COLUMNS
            )
            store_scales(
                row_scales, stored, batch, top, block_left, rows, scale_columns,
                TILE_ROWS, WIDTH, False, ROW_SWIZZLED,
            )  # fmt: skip
        if ALONG_COLUMNS:
            DOWN: tl.constexpr = (HEIGHT, BLOCK, TILE_COLUMNS)
            noise = tile
            if ROUNDING != "nearest":
                key_low, key_high = stream_key(tl.load(seed), column_stream)
            if ROUNDING == "stochastic":
                noise = noise_in(start, columns, key_low, key_high, TILE_ROWS, TILE_COLUMNS, WIDE)
                noise = tl.reshape(noise, DOWN)
            elif ROUNDING == "eden":
                first = block_top * columns + left
                noise = noise_in(first, columns, key_low, key_high, HEIGHT, TILE_COLUMNS, WIDE)
                noise = tl.reshape(noise, (HEIGHT, 1, TILE_COLUMNS))
            codes, stored = encode_blocks(
                tl.reshape(tile, DOWN), noise, enc, dec, multipliers, 1, False,
                BITS, MANTISSA, LEAST, LARGEST, INVERSE_LARGEST, MAX_EXPONENT, NAN,
                SCALE, SCALE_MANTISSA, SCALE_LEAST, SCALE_LARGEST, SCALE_NAN, POWER_OF_TWO,
                ROUNDING, ROUND_UP, GUARD_FACTOR, SELECT, SUM_ANCHOR, CARRY, INSTRUCTION,
            )  # fmt: skip
            codes = tl.reshape(codes, (TILE_ROWS, TILE_COLUMNS))
            stored = tl.reshape(stored, (HEIGHT, TILE_COLUMNS))
            store_column_codes(column_codes, codes, batch, top, left, rows, columns, PAIRED, TILE_ROWS, TILE_COLUMNS)
            store_scales(
                column_scales, stored, batch, top // BLOCK, left, block_rows, columns,
                HEIGHT, TILE_COLUMNS, True, COLUMN_SWIZZLED,
            )  # fmt: skip


def quantize_tiles(
    source: Source,
    spec: QuantSpec,
    axes: Sequence[int],
    *,
    out: Sequence[Tensor],
    amax: Tensor | None = None,
    seed: Tensor | None = None,
    streams: Sequence[int],
    swizzled: Sequence[int] = (),
) -> None:
    """Writes what `encode` gives of `source` to `out`: codes and block scales for each axis, then the tensor scale.

    axes: from 0: one, or the last two dimensions in either order; with signs one, that of the transform. out:
    contiguous, of the shapes and dtypes that `encode` returns. amax: 0-dim float32, the largest magnitude of what is
    quantized, for nvfp4 alone. seed: int64, where anything is rounded at random. streams: one for each axis. swizzled:
    those of the axes whose block scales are written as `numerics/swizzle.py` has them. `source.check_tiles` and
    `source.check_out` have seen them all.
    """
    x = source.x
    tensor_scale = out[-1] if spec.fmt.tensor_scale else None
    if x.numel() == 0:  # blocks of nothing have no scale, but a tensor of nothing has one
        if tensor_scale is not None:
            tensor_scale.fill_(1)
        return
    parts, last = out[: 2 * len(axes)], x.dim() - 1
    square = spec.orientation_free
    down = next((axis for axis in axes if axis != last), last - 1 if square or swizzled else None)
    if down is None:  # rows alone, of which there is one kind
        batch, rows, columns = 1, x.numel() // x.shape[last], x.shape[last]
    else:
        batch, rows, columns = prod(x.shape[:down]), x.shape[down], prod(x.shape[down + 1 :])

    given: dict[bool, tuple[Tensor | None, ...]] = {True: (None, None), False: (None, None)}  # along rows?
    stream = {True: 0, False: 0}
    for axis, codes, scales, number in zip(axes, parts[::2], parts[1::2], streams, strict=True):
        stored = scales if spec.fmt.scale_type.kind == "float32" else scales.view(torch.uint8)
        if axis in swizzled and scales.numel() > prod(part_shapes(spec, x.shape, axis)[1] or ()):
            stored.zero_()  # the kernel does not write what fills up the last tiles
        given[axis == last], stream[axis == last] = (codes, stored), number
    if square:
        stream[True] = streams[0]  # the kernel's, of a block that lies along both
    constants = source.constants(axes[0]) | constants_of(spec, _capability())
    tile = tile_for(spec, columns, x.dtype.itemsize, source.rank, constants["HADAMARD"])
    grid = (batch * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),)
    quantize_tiles_kernel[grid](
        *source, amax, seed, *given[True], *given[False], tensor_scale,
        rows, columns, triton.cdiv(columns, 2), triton.cdiv(columns, constants["BLOCK"]), source.rank,
        stream[True], stream[False],
        ALONG_ROWS=given[True][0] is not None,
        ALONG_COLUMNS=given[False][0] is not None,
        ROW_SWIZZLED=last in swizzled,
        COLUMN_SWIZZLED=any(axis != last for axis in swizzled),
        **constants,
        WIDE=x.numel() > 2**32,
        TILE_ROWS=tile.rows,
        TILE_COLUMNS=tile.columns,
        num_warps=tile.warps,
        enable_fp_fusion=False,
    )  # fmt: skip


def _capability() -> int:
    """The GPU's compute capability, times 10."""
    return int(triton.runtime.driver.active.get_current_target().arch)
