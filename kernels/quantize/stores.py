"""Where a tile's codes and scales go."""

from __future__ import annotations

import triton
import triton.language as tl

from metis_compile.kernels.swizzle import swizzled_in


@triton.jit
def pair(low, high):
    """Two codes to a byte."""
    return (low + high * 16).to(tl.uint8)


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
    PAIRED: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Codes of a tile at (top, left), one to a byte or PAIRED along rows."""
    m = tl.arange(0, HEIGHT)
    row = (batch * rows + top + m)[:, None]
    inside = (top + m < rows)[:, None]
    if PAIRED:
        n = left // 2 + tl.arange(0, WIDTH // 2)[None, :]
        low, high = tl.split(tl.reshape(codes, (HEIGHT, WIDTH // 2, 2)))
        tl.store(out + row * packed + n, pair(low, high), mask=inside & (n < packed))
    else:
        n = left + tl.arange(0, WIDTH)[None, :]
        tl.store(out + row * columns + n, codes.to(tl.uint8), mask=inside & (n < columns))


@triton.jit
def store_column_codes(
    out, codes, batch, top, left, rows, columns, PAIRED: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    """Codes of a tile at (top, left), one to a byte or PAIRED along columns."""
    n = left + tl.arange(0, WIDTH)[None, :]
    if PAIRED:
        height = tl.cdiv(rows, 2)
        m = top // 2 + tl.arange(0, HEIGHT // 2)[:, None]
        low, high = tl.split(tl.permute(tl.reshape(codes, (HEIGHT // 2, 2, WIDTH)), (0, 2, 1)))
        tl.store(out + (batch * height + m) * columns + n, pair(low, high), mask=(m < height) & (n < columns))
    else:
        m = top + tl.arange(0, HEIGHT)[:, None]
        tl.store(out + (batch * rows + m) * columns + n, codes.to(tl.uint8), mask=(m < rows) & (n < columns))


@triton.jit
def store_scales(
    out,
    stored,
    batch,
    row,
    column,
    rows,
    columns,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DOWN: tl.constexpr,
    SWIZZLED: tl.constexpr,
):
    """[HEIGHT, WIDTH] scales at (row, column) of [rows, columns] in a batch. DOWN: whether blocks lie along columns."""
    m, n = row + tl.arange(0, HEIGHT)[:, None], column + tl.arange(0, WIDTH)[None, :]
    at = swizzled_in(batch, m, n, rows, columns, DOWN) if SWIZZLED else (batch * rows + m) * columns + n
    tl.store(out + at, stored.to(out.dtype.element_ty), mask=(m < rows) & (n < columns))
