"""Codes under their block scales as bfloat16 matrices, in one pass: what a library's product takes.

    value = element * block scale        exact: E2M1 times E4M3 or E8M0, FP8 times E8M0 (down to bfloat16's 2^-133)

The scale of the whole tensor is left to the product's sum. A tile is as the tensor lies; two codes to a byte along its
rows are interleaved in registers, along its columns they are rows of their own.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from metis_compile.kernels.gemm.constants import decoding
from metis_compile.kernels.gemm.operand import Operand
from metis_compile.kernels.gemm.tiles import e8m0_values, high_codes, low_codes, minifloat_values
from metis_compile.kernels.swizzle import swizzled_in

TILE_ROWS, TILE_COLUMNS, WARPS = 32, 128, 4


@triton.jit
def times_scales(values, scales, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr, ALONG: tl.constexpr):
    """bfloat16 [ROWS, COLUMNS], each DOWN by ALONG of them times one of [ROWS / DOWN, COLUMNS / ALONG] scales."""
    blocks = tl.reshape(values, (ROWS // DOWN, DOWN, COLUMNS // ALONG, ALONG))
    return tl.reshape(blocks * scales[:, None, :, None], (ROWS, COLUMNS))


@triton.jit
def decode_kernel(
    codes,
    scales,
    out,
    rows,
    columns,
    SCALE: tl.constexpr,
    PAIRED_CODES: tl.constexpr,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,
    EXCESS: tl.constexpr,
    LARGEST_CODE: tl.constexpr,
    SCALE_BITS: tl.constexpr,
    SCALE_MANTISSA: tl.constexpr,
    SCALE_EXCESS: tl.constexpr,
    SCALE_LARGEST_CODE: tl.constexpr,
    SCALE_SIGNED: tl.constexpr,
    PACKED_ROWS: tl.constexpr,
    PACKED_COLUMNS: tl.constexpr,
    SWIZZLED: tl.constexpr,
    DOWN: tl.constexpr,
    ALONG: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tiles_across, tiles_down = tl.cdiv(columns, COLUMNS), tl.cdiv(rows, ROWS)
    program = tl.program_id(0)
    batch = (program // (tiles_across * tiles_down)).to(tl.int64)
    top, left = program // tiles_across % tiles_down * ROWS, program % tiles_across * COLUMNS
    m, n = tl.arange(0, ROWS), tl.arange(0, COLUMNS)

    scale_m, scale_n = top // DOWN + tl.arange(0, ROWS // DOWN), left // ALONG + tl.arange(0, COLUMNS // ALONG)
    scale_rows, scale_columns = tl.cdiv(rows, DOWN), tl.cdiv(columns, ALONG)
    if SWIZZLED:
        at = swizzled_in(batch, scale_m[:, None], scale_n[None, :], scale_rows, scale_columns, DOWN > 1)
    else:
        at = (batch * scale_rows + scale_m)[:, None] * scale_columns + scale_n[None, :]
    inside = (scale_m < scale_rows)[:, None] & (scale_n < scale_columns)[None, :]
    scale = tl.load(scales + at, mask=inside, other=0).to(tl.uint16)
    if SCALE == "minifloat":
        factor = minifloat_values(
            scale, SCALE_BITS, SCALE_MANTISSA, SCALE_EXCESS, SCALE_LARGEST_CODE, SCALE_SIGNED
        ) * (2.0**SCALE_EXCESS)  # fmt: skip
    else:
        tl.static_assert(SCALE == "exponent", "SCALE must be 'minifloat' or 'exponent'")
        factor = e8m0_values(scale)

    start = out + (batch * rows + top) * columns + left
    if PAIRED_CODES:
        HEIGHT: tl.constexpr = ROWS // 2 if PACKED_ROWS else ROWS
        WIDTH: tl.constexpr = COLUMNS // 2 if PACKED_COLUMNS else COLUMNS
        stored_rows = tl.cdiv(rows, 2) if PACKED_ROWS else rows
        stored_columns = tl.cdiv(columns, 2) if PACKED_COLUMNS else columns
        i = (top // 2 if PACKED_ROWS else top) + tl.arange(0, HEIGHT)
        j = (left // 2 if PACKED_COLUMNS else left) + tl.arange(0, WIDTH)
        pointers = codes + (batch * stored_rows + i)[:, None] * stored_columns + j[None, :]
        pairs = tl.load(pointers, mask=(i < stored_rows)[:, None] & (j < stored_columns)[None, :], other=0)
        low = low_codes(pairs.to(tl.uint16), MANTISSA) * (2.0**EXCESS)
        high = high_codes(pairs.to(tl.uint16), MANTISSA) * (2.0**EXCESS)
        HALF_DOWN: tl.constexpr = DOWN // 2 if PACKED_ROWS and DOWN > 1 else DOWN
        HALF_ALONG: tl.constexpr = ALONG // 2 if PACKED_COLUMNS and ALONG > 1 else ALONG
        low = times_scales(low, factor, HEIGHT, WIDTH, HALF_DOWN, HALF_ALONG)
        high = times_scales(high, factor, HEIGHT, WIDTH, HALF_DOWN, HALF_ALONG)
        if PACKED_COLUMNS:
            values = tl.reshape(tl.join(low, high), (ROWS, COLUMNS))
            inside = (top + m < rows)[:, None] & (left + n < columns)[None, :]
            tl.store(start + m[:, None].to(tl.int64) * columns + n[None, :], values, mask=inside)
        else:
            k = 2 * tl.arange(0, HEIGHT)
            pointers = start + k[:, None].to(tl.int64) * columns + n[None, :]
            tl.store(pointers, low, mask=(top + k < rows)[:, None] & (left + n < columns)[None, :])
            tl.store(pointers + columns, high, mask=(top + k + 1 < rows)[:, None] & (left + n < columns)[None, :])
    else:
        inside = (top + m < rows)[:, None] & (left + n < columns)[None, :]
        offsets = m[:, None].to(tl.int64) * columns + n[None, :]
        byte = tl.load(codes + (batch * rows + top) * columns + left + offsets, mask=inside, other=0).to(tl.uint16)
        values = minifloat_values(byte, BITS, MANTISSA, EXCESS, LARGEST_CODE, True)
        if EXCESS != 0:
            values = values * (2.0**EXCESS)
        tl.store(start + offsets, times_scales(values, factor, ROWS, COLUMNS, DOWN, ALONG), mask=inside)


def decode_to_bfloat16(parts: Sequence[Tensor], operand: Operand, length: int) -> Tensor:
    """Elements times block scales, without the tensor scale, contiguous: [rows, columns] or a batch of them.

    parts: contiguous, on a GPU, of a format with E4M3 or E8M0 scales. length: along `operand.axis`.
    """
    codes, scales = parts[0].contiguous(), parts[1].contiguous().view(torch.uint8)
    sizes = list(codes.shape)
    sizes[operand.axis] = length
    out = codes.new_empty(sizes, dtype=torch.bfloat16)
    rows, columns = sizes[-2:]
    across, along = operand.block
    block = (across, along) if operand.axis == -1 or across > 1 else (along, across)
    constants = decoding(operand)
    del constants["DOWN"]  # here of rows and columns that share a scale
    packed = constants["PAIRED_CODES"]
    tiles = triton.cdiv(rows, TILE_ROWS) * triton.cdiv(columns, TILE_COLUMNS)
    if out.numel() > 0:
        decode_kernel[(tiles * (out.numel() // (rows * columns)),)](
            codes, scales, out, rows, columns,
            SCALE=operand.spec.fmt.scale_type.kind,
            **constants,
            PACKED_ROWS=packed and operand.axis == -2,
            PACKED_COLUMNS=packed and operand.axis == -1,
            SWIZZLED=operand.swizzled,
            DOWN=block[0],
            ALONG=block[1],
            ROWS=TILE_ROWS,
            COLUMNS=TILE_COLUMNS,
            num_warps=WARPS,
        )  # fmt: skip
    return out
