"""Where a block scale lies among swizzled ones, in Triton; `metis_compile/numerics/swizzle.py` is the definition."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def swizzled_in(batch, m, n, rows, columns, DOWN: tl.constexpr):
    """The place of the scale at (m, n) of a batch of [rows, columns]. DOWN: whether k, along which blocks lie, is m's.

    Tiles are of 128 by 4: of 512 scales.
    """
    if DOWN:
        row, block, row_tiles, block_tiles = n, m, tl.cdiv(columns, 128), tl.cdiv(rows, 4)
    else:
        row, block, row_tiles, block_tiles = m, n, tl.cdiv(rows, 128), tl.cdiv(columns, 4)
    of_row = (batch * row_tiles + row // 128) * block_tiles * 512 + row % 32 * 16 + row // 32 % 4 * 4
    return of_row + (block // 4 * 512 + block % 4)
