"""Quantization in blocks of 16, 32 or 128 in one read of a tensor: blocks along its rows, along its columns, or both.

A program takes a tile whose sides are multiples of the block, so that blocks of both orientations are complete in it.
`metis_compile.numerics.encode` is the definition, and gives the same bytes:

    multiplier, scale = f(largest magnitude of the block, and of the tensor where the format has a tensor scale)
    code = round((x - mean) * multiplier)                                 two E2M1 codes to a byte along the block

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

from metis_compile.kernels.parts import e8m0_carry
from metis_compile.kernels.quantize.blocks import encode_blocks
from metis_compile.kernels.quantize.noise import noise_in, stream_key
from metis_compile.kernels.quantize.scales import e4m3_multipliers, encode_scale
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.blocks import BlockLayout
from metis_compile.numerics.formats import BLOCK_ELEMENTS

INPUTS = (torch.float32, torch.bfloat16, torch.float16)


class Tile(NamedTuple):
    """What one program takes of a tensor [batch, rows, columns]."""

    rows: int
    columns: int
    warps: int


def tile_for(spec: QuantSpec, columns: int, itemsize: int) -> Tile:
    """The tile for rows of so many columns. More elements would not fit the registers of a thread."""
    block = int(spec.block.split("x")[1])
    if block == 128:
        return Tile(128, 128, 8)
    simple = not spec.needs_noise and spec.select is None
    elements = 128 if itemsize == 2 and simple else 64  # of a thread
    across = 32 * elements // block  # columns of a warp
    warps = next((w for w in (4, 2) if w * across <= columns), 1)
    return Tile(block, across * warps, warps)


@triton.jit
def pair(low, high):
    """Two codes to a byte."""
    return (low + high * 16).to(tl.uint8)


@triton.jit(do_not_specialize=["row_stream", "column_stream"])
def quantize_tiles_kernel(
    x,
    mean,
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
    row_stream,
    column_stream,
    BLOCK: tl.constexpr,
    SQUARE: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
    ROUNDING: tl.constexpr,
    LARGEST_SCALE: tl.constexpr,
    GUARD: tl.constexpr,
    SELECT: tl.constexpr,
    CARRY: tl.constexpr,
    ALONG_ROWS: tl.constexpr,
    ALONG_COLUMNS: tl.constexpr,
    SUBTRACT: tl.constexpr,
    HARDWARE_FP8: tl.constexpr,
    WIDE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    tiles_across = tl.cdiv(columns, TILE_COLUMNS)
    tiles_down = tl.cdiv(rows, TILE_ROWS)
    program = tl.program_id(0)
    batch = (program // (tiles_across * tiles_down)).to(tl.int64)
    top = ((program // tiles_across) % tiles_down) * TILE_ROWS
    left = (program % tiles_across) * TILE_COLUMNS

    m, n = tl.arange(0, TILE_ROWS), tl.arange(0, TILE_COLUMNS)
    inside_m, inside_n = top + m < rows, left + n < columns
    inside = inside_m[:, None] & inside_n[None, :]
    start = (batch * rows + top) * columns + left  # of the tile, in elements
    offsets = m[:, None].to(tl.int64) * columns + n[None, :]
    tile = tl.load(x + start + offsets, mask=inside, other=0.0).to(tl.float32)
    if SUBTRACT:
        tile = tl.where(inside, tile - tl.load(mean + left + n, mask=inside_n, other=0.0)[None, :], 0.0)

    enc, dec, multipliers, key_low, key_high = 1.0, 1.0, 1.0, 0, 0
    if SCALE == "e4m3":
        enc = encode_scale(tl.load(amax), LARGEST_SCALE * 6.0)
        dec = tl.div_rn(1.0, enc)
        multipliers = e4m3_multipliers(dec)
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
            ELEMENT, SCALE, ROUNDING, GUARD, SELECT, CARRY, HARDWARE_FP8,
        )  # fmt: skip
        codes = tl.reshape(codes, (TILE_ROWS, TILE_COLUMNS))
        stored = tl.reshape(stored, (HEIGHT, WIDTH))
        left_rows = block_rows - top // BLOCK
        if ALONG_ROWS:
            store_row_codes(
                row_codes, codes, batch, top, left, rows, columns, packed_columns, ELEMENT, TILE_ROWS, TILE_COLUMNS
            )
            store_scales(row_scales, stored, block_top, block_left, left_rows, scale_columns, HEIGHT, WIDTH)
        if ALONG_COLUMNS:
            store_column_codes(column_codes, codes, batch, top, left, rows, columns, ELEMENT, TILE_ROWS, TILE_COLUMNS)
            store_scales(column_scales, stored, block_top, block_left, left_rows, scale_columns, HEIGHT, WIDTH)
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
                ELEMENT, SCALE, ROUNDING, GUARD, SELECT, CARRY, HARDWARE_FP8,
            )  # fmt: skip
            codes = tl.reshape(codes, (TILE_ROWS, TILE_COLUMNS))
            stored = tl.reshape(stored, (TILE_ROWS, WIDTH))
            store_row_codes(
                row_codes, codes, batch, top, left, rows, columns, packed_columns, ELEMENT, TILE_ROWS, TILE_COLUMNS
            )
            store_scales(row_scales, stored, row, block_left, rows - top, scale_columns, TILE_ROWS, WIDTH)
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
                ELEMENT, SCALE, ROUNDING, GUARD, SELECT, CARRY, HARDWARE_FP8,
            )  # fmt: skip
            codes = tl.reshape(codes, (TILE_ROWS, TILE_COLUMNS))
            stored = tl.reshape(stored, (HEIGHT, TILE_COLUMNS))
            left_rows = block_rows - top // BLOCK
            store_column_codes(column_codes, codes, batch, top, left, rows, columns, ELEMENT, TILE_ROWS, TILE_COLUMNS)
            store_scales(column_scales, stored, block_top, left, left_rows, columns, HEIGHT, TILE_COLUMNS)


@triton.jit
def store_row_codes(
    out,
    codes,
    batch,
    top,
    left,
    rows,
    columns,
    packed,
    ELEMENT: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Codes of a tile at (top, left), E2M1 packed along rows."""
    m = tl.arange(0, HEIGHT)
    row = (batch * rows + top + m)[:, None]
    inside = (top + m < rows)[:, None]
    if ELEMENT == "e2m1":
        n = left // 2 + tl.arange(0, WIDTH // 2)[None, :]
        low, high = tl.split(tl.reshape(codes, (HEIGHT, WIDTH // 2, 2)))
        tl.store(out + row * packed + n, pair(low, high), mask=inside & (n < packed))
    else:
        n = left + tl.arange(0, WIDTH)[None, :]
        tl.store(out + row * columns + n, codes.to(tl.uint8), mask=inside & (n < columns))


@triton.jit
def store_column_codes(
    out, codes, batch, top, left, rows, columns, ELEMENT: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    """Codes of a tile at (top, left), E2M1 packed along columns."""
    n = left + tl.arange(0, WIDTH)[None, :]
    if ELEMENT == "e2m1":
        height = tl.cdiv(rows, 2)
        m = top // 2 + tl.arange(0, HEIGHT // 2)[:, None]
        low, high = tl.split(tl.permute(tl.reshape(codes, (HEIGHT // 2, 2, WIDTH)), (0, 2, 1)))
        tl.store(out + (batch * height + m) * columns + n, pair(low, high), mask=(m < height) & (n < columns))
    else:
        m = top + tl.arange(0, HEIGHT)[:, None]
        tl.store(out + (batch * rows + m) * columns + n, codes.to(tl.uint8), mask=(m < rows) & (n < columns))


@triton.jit
def store_scales(out, stored, row, column, rows, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """[HEIGHT, WIDTH] scales at (row, column); `rows` are left from there, and a row of memory has `columns`."""
    m, n = tl.arange(0, HEIGHT)[:, None], column + tl.arange(0, WIDTH)[None, :]
    tl.store(out + (row + m) * columns + n, stored.to(out.dtype.element_ty), mask=(m < rows) & (n < columns))


def quantize_tiles(
    x: Tensor,
    spec: QuantSpec,
    axes: Sequence[int],
    *,
    out: Sequence[Tensor],
    mean: Tensor | None = None,
    amax: Tensor | None = None,
    seed: Tensor | None = None,
    streams: Sequence[int] = (0, 0),
) -> None:
    """Writes what `encode` gives of x to `out`: codes and block scales for each axis, then the tensor scale if any.

    x: contiguous, float32, bfloat16 or float16. axes: one, or the last two dimensions in either order. out: contiguous,
    of the shapes and dtypes that `encode` returns. mean: float32, as long as x's last dimension; x - mean is
    quantized. amax: 0-dim float32, the largest magnitude of what is quantized, for nvfp4 alone. seed: int64, and a
    stream for each axis, where anything is rounded at random. Raises TypeError, ValueError or IndexError that names the
    argument.
    """
    _check(x, spec, mean, amax, seed)
    axes = [BlockLayout.of(spec, x.dim(), axis).axis for axis in axes]
    parts = out[: 2 * len(axes)]
    tensor_scale = out[-1] if spec.fmt.tensor_scale else None
    if x.numel() == 0:  # blocks of nothing have no scale, but a tensor of nothing has one
        if tensor_scale is not None:
            tensor_scale.fill_(1)
        return
    last, square = x.dim() - 1, spec.block in ("16x16", "128x128")
    if len(axes) > 1 and sorted(axes) != [last - 1, last]:
        raise ValueError(f"quantize_tiles: axes must be one, or the last two of {x.dim()}, got {list(axes)}")
    if square and len(axes) > 1 and spec.needs_noise and streams[0] != streams[1]:
        raise ValueError(f"quantize_tiles: streams must be equal for {spec.block} blocks, got {list(streams)}")
    down = next((axis for axis in axes if axis != last), last - 1 if square else None)
    if down is None:  # rows alone, of which there is one kind
        batch, rows, columns = 1, x.numel() // x.shape[last], x.shape[last]
    else:
        batch, rows, columns = prod(x.shape[:down]), x.shape[down], prod(x.shape[down + 1 :])
    if mean is not None and down is not None and down != last - 1:
        raise ValueError(f"quantize_tiles: axes must be among the last two with a mean, got {list(axes)}")

    given: dict[bool, tuple[Tensor | None, ...]] = {True: (None, None), False: (None, None)}  # along rows?
    stream = {True: 0, False: 0}
    for axis, codes, scales, number in zip(axes, parts[::2], parts[1::2], streams, strict=False):
        stored = scales if spec.fmt.scale == "fp32" else scales.view(torch.uint8)
        given[axis == last], stream[axis == last] = (codes, stored), number
    if square:
        stream[True] = streams[0]  # the kernel's, of a block that lies along both
    block = int(spec.block.split("x")[1])
    tile = tile_for(spec, columns, x.dtype.itemsize)
    grid = (batch * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),)
    quantize_tiles_kernel[grid](
        x, mean, amax, seed, *given[True], *given[False], tensor_scale,
        rows, columns, triton.cdiv(columns, 2), triton.cdiv(columns, block), stream[True], stream[False],
        BLOCK=block,
        SQUARE=square,
        ELEMENT=spec.element.name,
        SCALE=spec.fmt.scale,
        ROUNDING=spec.rounding,
        LARGEST_SCALE=spec.largest_scale if spec.fmt.scale == "e4m3" else None,
        GUARD=spec.guard,
        SELECT=spec.select,
        CARRY=e8m0_carry(spec),
        ALONG_ROWS=given[True][0] is not None,
        ALONG_COLUMNS=given[False][0] is not None,
        SUBTRACT=mean is not None,
        HARDWARE_FP8=has_fp8(),
        WIDE=x.numel() > 2**32,
        TILE_ROWS=tile.rows,
        TILE_COLUMNS=tile.columns,
        num_warps=tile.warps,
        enable_fp_fusion=False,
    )  # fmt: skip


def has_fp8() -> bool:
    """Whether the GPU has the instructions that round to FP8: compute capability 8.9 and newer."""
    return bool(triton.runtime.driver.active.get_current_target().arch >= 89)


def _check(x: Tensor, spec: QuantSpec, mean: Tensor | None, amax: Tensor | None, seed: Tensor | None) -> None:
    if x.dtype not in INPUTS:
        raise TypeError(f"quantize_tiles: x must be float32, bfloat16 or float16, got {x.dtype}")
    if not x.is_contiguous():
        raise ValueError(f"quantize_tiles: x must be contiguous, got strides {x.stride()} for shape {tuple(x.shape)}")
    if x.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(f"quantize_tiles: x must be on a CUDA device, got {x.device}")
    if spec.block not in BLOCK_ELEMENTS:
        raise ValueError(f"quantize_tiles: spec's block must be one of {', '.join(BLOCK_ELEMENTS)}, got {str(spec)!r}")
    for name, given, wanted in (("amax", amax, spec.fmt.tensor_scale), ("seed", seed, spec.needs_noise)):
        if (given is not None) != wanted:
            raise ValueError(f"quantize_tiles: {name} must {'' if wanted else 'not '}be given for {str(spec)!r}")
    if mean is not None and (mean.dtype != torch.float32 or mean.numel() != x.shape[-1]):
        raise ValueError(
            f"quantize_tiles: mean must be {x.shape[-1]} float32, one for each column of x, "
            f"got {mean.numel()} {mean.dtype}"
        )
