"""Tiles of packed operands in a kernel's registers: loaded, and decoded to bfloat16 exactly.

What templates call; Triton compiles these functions into them. Tiles are [rows, k] for both operands of a product.

E2M1 is a sign, two bits of exponent and one of mantissa: moved to where bfloat16 has its own, they spell the value
times 2^-126, its subnormal 0.5 included, since bfloat16's subnormals continue the same way. So do E4M3's bits, times
2^-120, and any minifloat's: EXCESS is what the power of two then lacks. A product with a power of two, or with a scale
times one, gives the value: exact, without tables.

Under a minifloat scale a tile holds its values times 2^-DOWN, so that the largest scale times 2^(EXCESS - DOWN) is in
range (448 * 2^119 under E4M3) and one multiplication does.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def low_codes(byte, MANTISSA: tl.constexpr):
    """The lower of two codes of 4 bits in uint16 bytes, bfloat16, times 2^-EXCESS."""
    return (((byte & 0x8) << 12) | ((byte & 0x7) << (7 - MANTISSA))).to(tl.bfloat16, bitcast=True)


@triton.jit
def high_codes(byte, MANTISSA: tl.constexpr):
    """The upper of two codes of 4 bits in uint16 bytes, bfloat16, times 2^-EXCESS."""
    return (((byte & 0x80) << 8) | ((byte & 0x70) << (3 - MANTISSA))).to(tl.bfloat16, bitcast=True)


@triton.jit
def minifloat_values(
    byte, BITS: tl.constexpr, MANTISSA: tl.constexpr, EXCESS: tl.constexpr, LARGEST_CODE: tl.constexpr,
    SIGNED: tl.constexpr,
):  # fmt: skip
    """bfloat16 of uint16 codes, times 2^-EXCESS. Codes above the largest are NaN; EXCESS 0: see half_values."""
    if EXCESS == 0:
        values = half_values(byte, BITS)
    else:
        MASK: tl.constexpr = (1 << (BITS - 1 if SIGNED else BITS)) - 1
        bits = (byte & MASK) << (7 - MANTISSA)
        if SIGNED:
            bits = bits | ((byte & (1 << (BITS - 1))) << (16 - BITS))
        if LARGEST_CODE < MASK:
            bits = tl.where((byte & MASK) > LARGEST_CODE, 0x7FC0, bits)
        values = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values


@triton.jit
def half_values(byte, BITS: tl.constexpr):
    """bfloat16 of uint16 codes that are the upper bits of float16, as E5M2's are, infinity included."""
    return (byte << (16 - BITS)).to(tl.float16, bitcast=True).to(tl.float32).to(tl.bfloat16)


@triton.jit
def e8m0_values(byte):
    """bfloat16 of uint16 bytes: 2^(byte - 127); 255 is NaN."""
    bits = tl.where(byte == 0, 0x40, tl.where(byte == 255, 0x7FC0, byte << 7))
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def load_scales(
    scales,
    rows,
    block,
    blocks,
    row_stride,
    block_stride,
    ACROSS: tl.constexpr,
    COUNT: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """[rows, COUNT] block scales from `block` on, of `blocks` along k; ACROSS rows share one."""
    at = block + tl.arange(0, COUNT)
    pointers = scales + (rows // ACROSS)[:, None] * row_stride + at[None, :] * block_stride
    if EVEN_K:
        return tl.load(pointers)
    return tl.load(pointers, mask=at[None, :] < blocks, other=0)


@triton.jit
def rows_of_tile(offs, groups, tile, tokens, BLOCK: tl.constexpr):
    """(group, first row, end) of a tile of BLOCK rows. Groups begin new tiles; `groups` stands for rows of none."""
    group, first_row, end_row = tile * 0 + groups, tile * 0, tile * 0
    start, tiles_before = tile * 0, tile * 0
    for g in range(0, groups + 1):
        end = tl.minimum(tl.load(offs + g, mask=g < groups, other=tokens), tokens).to(tl.int32)
        tiles = tl.cdiv(end - start, BLOCK)
        here = (tile >= tiles_before) & (tile < tiles_before + tiles)
        group = tl.where(here, g, group)
        first_row = tl.where(here, start + (tile - tiles_before) * BLOCK, first_row)
        end_row = tl.where(here, end, end_row)
        tiles_before += tiles
        start = end
    return group, first_row, end_row


@triton.jit
def within(values, k, first, end):
    """Those of [rows, k] from `first` to `end` along k, 0 for others."""
    return tl.where(((k >= first) & (k < end))[None, :], values, tl.zeros_like(values))


@triton.jit
def load_swizzled_scales(
    scales, tile, row_tiles, block, block_tiles, ROWS: tl.constexpr, COUNT: tl.constexpr, EVEN_K: tl.constexpr
):  # fmt: skip
    """[ROWS, COUNT] block scales from `block` on, swizzled, of the operand's rows from ROWS * `tile` on.

    Triton copies them from shared to tensor memory as they lie (Triton 3.7) where they are loaded as one row of bytes
    and pass through nothing but this reshape, this permutation and this reshape.
    """
    byte = tl.arange(0, ROWS * COUNT)
    row_tile = (tile * (ROWS // 128) + byte // (COUNT * 128)) % row_tiles
    block_tile = block // 4 + byte // 512 % (COUNT // 4)
    pointers = (scales + (row_tile.to(tl.int64) * block_tiles + block_tile) * 512 + byte % 512)[None, :]
    inside = None if EVEN_K else (block_tile < block_tiles)[None, :]
    stored = tl.load(pointers, mask=inside, other=None if EVEN_K else 0.0)
    tiles = tl.reshape(stored, (ROWS // 128, COUNT // 4, 32, 4, 4))
    return tl.reshape(tl.permute(tiles, (0, 3, 2, 1, 4)), (ROWS, COUNT))


@triton.jit
def spread(scales, ROWS: tl.constexpr, COUNT: tl.constexpr, EACH: tl.constexpr):
    """[ROWS, COUNT * EACH] of [ROWS, COUNT]: each of them EACH times."""
    return tl.reshape(tl.broadcast_to(scales[:, :, None], (ROWS, COUNT, EACH)), (ROWS, COUNT * EACH))


@triton.jit
def load_bytes(codes, rows, at, end, row_stride, k_stride, EVEN_K: tl.constexpr):
    """[rows, at] of codes, uint8 or FP8; 0 from `end` on."""
    pointers = codes + rows[:, None] * row_stride + at[None, :] * k_stride
    if EVEN_K:
        return tl.load(pointers)
    return tl.load(pointers, mask=at[None, :] < end, other=0.0)


@triton.jit
def interleaved(low, high, ROWS: tl.constexpr, K: tl.constexpr):
    """[ROWS, K] whose even rows are `low` and odd rows `high`, of [ROWS / 2, K] each."""
    return tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (ROWS, K))


@triton.jit
def unscaled_tile(
    codes, rows, byte_rows, k, K, row_stride, k_stride,
    PAIRED: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, EXCESS: tl.constexpr, LARGEST_CODE: tl.constexpr,
    ROWS: tl.constexpr, COUNT: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """bfloat16 [rows, k] of codes not packed along k, times 2^-EXCESS. PAIRED: two to a byte along the rows."""
    if PAIRED:
        byte = load_bytes(codes, byte_rows, k, K, row_stride, k_stride, EVEN_K).to(tl.uint16)
        return interleaved(low_codes(byte, MANTISSA), high_codes(byte, MANTISSA), ROWS, COUNT)
    byte = load_bytes(codes, rows, k, K, row_stride, k_stride, EVEN_K).to(tl.uint16)
    return minifloat_values(byte, BITS, MANTISSA, EXCESS, LARGEST_CODE, True)


@triton.jit
def scaled(
    values, scale_bytes, EXCESS: tl.constexpr, SCALE: tl.constexpr, SCALE_BITS: tl.constexpr,
    SCALE_MANTISSA: tl.constexpr, SCALE_EXCESS: tl.constexpr, SCALE_LARGEST_CODE: tl.constexpr,
    SCALE_SIGNED: tl.constexpr, DOWN: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Values times 2^EXCESS under their scales, bfloat16, EACH columns under one; times 2^-DOWN under minifloats."""
    if SCALE == "minifloat":
        factor = minifloat_values(
            scale_bytes.to(tl.uint16), SCALE_BITS, SCALE_MANTISSA, SCALE_EXCESS, SCALE_LARGEST_CODE, SCALE_SIGNED
        )
        factor = factor * (2.0**SCALE_EXCESS) * (2.0 ** (EXCESS - DOWN))
        values = values * spread(factor, values.shape[0], scale_bytes.shape[1], EACH)
    else:
        if EXCESS != 0:
            values = values * (2.0**EXCESS)
        if SCALE == "exponent":
            factor = e8m0_values(scale_bytes.to(tl.uint16))
            values = values * spread(factor, values.shape[0], scale_bytes.shape[1], EACH)
        else:
            tl.static_assert(SCALE == "float32", "SCALE must be 'minifloat', 'exponent' or 'float32'")
    return values


@triton.jit
def tail_of(
    acc, left, right, rows, columns, M, N, R, left_stride, left_r_stride, right_r_stride, right_stride,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """acc + left @ right, [M, R] and [R, N]; float32 operands as three products of tf32."""
    for start in range(0, R, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        u = tl.load(
            left + rows[:, None] * left_stride + r[None, :] * left_r_stride,
            mask=(rows[:, None] < M) & (r[None, :] < R),
            other=0.0,
        )
        s = tl.load(
            right + r[:, None] * right_r_stride + columns[None, :] * right_stride,
            mask=(r[:, None] < R) & (columns[None, :] < N),
            other=0.0,
        )
        if u.dtype != s.dtype:
            u, s = u.to(tl.float32), s.to(tl.float32)
        acc = tl.dot(u, s, acc, input_precision="tf32x3")
    return acc
