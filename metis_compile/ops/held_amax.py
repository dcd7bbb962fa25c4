"""`metis::held_amax(x, kept, every) -> (amax, kept)`: see `metis_compile.numerics.held_amax`.

Between two measurements it does not read x. What is kept lies on the CPU, so that a GPU is waited for where an amax is
measured and in no other step.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import torch
from torch import Tensor

from metis_compile.numerics.held_amax import LONGEST
from metis_compile.ops.checks import check_dtype, check_shape

__all__ = ["HELD_AMAX", "KEPT_SHAPE", "check_kept", "held_or_measured"]

KEPT_SHAPE = [2]  # the amax, and how many steps it has served

_library = torch.library.Library("metis", "FRAGMENT")
_library.define(
    "held_amax(Tensor x, Tensor kept, int every) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),  # it looks at `kept`
)


def held_or_measured(x: Tensor, kept: Tensor, every: int, measure: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The amax for this step, on x's device, and what to keep. measure: called where none is held."""
    held, served = kept.tolist()
    if 1 <= served < every:
        return x.new_full((), held, dtype=torch.float32), kept.new_tensor([held, served + 1])
    amax = measure()
    own = float(amax)
    return amax, kept.new_tensor([own, 1.0]) if isfinite(own) and own > 0 else kept.clone()


def check_kept(op: str, kept: Tensor, every: int) -> None:
    """Raises TypeError or ValueError."""
    check_dtype(op, "kept", kept, torch.float32)
    check_shape(op, "kept", kept, KEPT_SHAPE)
    if kept.device.type != "cpu":
        raise ValueError(f"{op}: kept must be on cpu, got {kept.device}")
    if not 1 <= every <= LONGEST:
        raise ValueError(f"{op}: every must be at least 1 and at most {LONGEST}, got {every}")


def _check(x: Tensor, kept: Tensor, every: int) -> None:
    check_dtype("metis::held_amax", "x", x, torch.float32, torch.bfloat16, torch.float16)
    check_kept("metis::held_amax", kept, every)


@torch.library.impl(_library, "held_amax", "CompositeExplicitAutograd")
def _held_amax(x: Tensor, kept: Tensor, every: int) -> tuple[Tensor, Tensor]:
    _check(x, kept, every)
    return held_or_measured(x, kept, every, lambda: _measured(x))


def _measured(x: Tensor) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros((), dtype=torch.float32)
    least, most = torch.aminmax(x)  # one pass, and nothing of x's size is stored
    return torch.maximum(torch.abs(least), torch.abs(most)).to(torch.float32)


@torch.library.register_fake("metis::held_amax", lib=_library)
def _(x: Tensor, kept: Tensor, every: int) -> tuple[Tensor, Tensor]:
    _check(x, kept, every)
    return x.new_empty((), dtype=torch.float32), torch.empty_like(kept)


HELD_AMAX = torch.ops.metis.held_amax.default
