"""Block scales rearranged scale by scale, as the hardware's manual has them: what every other way must give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from packed_operands import Packed
from torch import Tensor


def by_hand(scales: Tensor, axis: int) -> Tensor:
    """[*batch, rows / 128, blocks / 4, 32, 4, 4] of scales whose blocks lie along `axis`, one of the last two."""
    across = axis % scales.dim() == scales.dim() - 2
    stored = scales.view(torch.uint8).numpy()
    *batch, rows, blocks = stored.swapaxes(-1, -2).shape if across else stored.shape
    row_tiles, block_tiles = -(-rows // 128), -(-blocks // 4)
    count = int(np.prod(batch))
    out = np.zeros((count, row_tiles * block_tiles * 512), dtype=np.uint8)
    for matrix, flat in zip(stored.reshape(count, *stored.shape[-2:]), out, strict=True):
        for row in range(rows):
            for block in range(blocks):
                tile = row // 128 * block_tiles + block // 4
                byte = row % 32 * 16 + row % 128 // 32 * 4 + block % 4
                flat[512 * tile + byte] = matrix[block, row] if across else matrix[row, block]
    result = torch.from_numpy(out.reshape(*batch, row_tiles, block_tiles, 32, 4, 4))
    return result.view(scales.dtype)


def swizzled(operand: Packed) -> Packed:
    """The same operand, its block scales rearranged."""
    codes, scales, *rest = operand.parts
    return operand._replace(parts=[codes, by_hand(scales, operand.axis), *rest])


def swizzled_parts(parts: Sequence[Tensor], axis: int) -> list[Tensor]:
    """What `encode` gives, with block scales rearranged."""
    return [parts[0], by_hand(parts[1], axis), *parts[2:]]
