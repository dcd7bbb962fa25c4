"""The amax that a tensor's scale is made of, held for some steps, in which no pass over the tensor is needed for it.

    own   = the largest magnitude of x, 0 of no elements
    stale = not 1 <= served < every                          at first served is 0
    amax  = own where stale, else held
    held, served <- own, 1                where stale, and own is above 0 and finite
                    held, served          where stale, and it is not: the next step measures again
                    held, served + 1      where not stale

Where x has grown since, it saturates when it is quantized: elements go no further than the largest one, block scales
no further than the largest scale. Values then end at the held amax in NVFP4 and FP8, 137 times as far out under UE5M3
scales (61,440 above a target of 448); under eden, whose scales have room up to 1.75 times the held amax, a block beyond
is scaled down as a whole. Infinity saturates as any other value does (eden: its block is NaN); a NaN stays NaN, in FP4
its block. Where x has shrunk, block scales may round to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

LONGEST = 2**24  # steps: they are counted in float32


def held_amax(x: Tensor, kept: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """The amax to quantize x by, 0-dim float32 on x's device, and what to keep of it for the next step.

    x: floating-point, any shape. kept: float32 [2], (held, served), as the last step gave it; zeros at first. every:
    how many steps an amax serves, 1 to LONGEST; 1 holds nothing. The second result is like `kept`, on its device.
    """
    own = own_amax(x).to(kept.device)
    held, served = kept[0], kept[1]
    stale = torch.logical_not((served >= 1) & (served < every))
    amax = torch.where(stale, own, held)
    usable = (own > 0) & torch.isfinite(own)
    measured = torch.where(usable, torch.stack([own, torch.ones_like(own)]), kept)
    return amax.to(x.device), torch.where(stale, measured, torch.stack([held, served + 1]))


def own_amax(x: Tensor) -> Tensor:
    """The largest magnitude of x, 0-dim float32: NaN if an element is, 0 of no elements."""
    if statically_known_true(x.numel() == 0):
        return x.new_zeros((), dtype=torch.float32)
    return torch.amax(torch.abs(x)).to(torch.float32)
