"""`metis::materialize(x)` is the identity; it tells Inductor to compute x once, into a buffer.

`metis::to_bfloat16(x)` is a cast that compilers do not drop where the result is cast back.
"""

from __future__ import annotations

import torch

__all__ = ["MATERIALIZE", "TO_BFLOAT16", "materialize"]


@torch.library.custom_op("metis::materialize", mutates_args=())
def materialize(x: torch.Tensor) -> torch.Tensor:
    """`x`, as a buffer of its own in compiled code."""
    return x.clone()


@materialize.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


_library = torch.library.Library("metis", "FRAGMENT")
_library.define("to_bfloat16(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl(_library, "to_bfloat16", "CompositeExplicitAutograd")
def _to_bfloat16(x: torch.Tensor) -> torch.Tensor:
    _check_floating(x)
    return x.to(torch.bfloat16, copy=True)


def _check_floating(x: torch.Tensor) -> None:
    if not x.dtype.is_floating_point:
        raise TypeError(f"metis::to_bfloat16: x must be of a floating dtype, got {x.dtype}")


@torch.library.register_fake("metis::to_bfloat16", lib=_library)
def _(x: torch.Tensor) -> torch.Tensor:
    _check_floating(x)
    return torch.empty_like(x, dtype=torch.bfloat16)


MATERIALIZE = torch.ops.metis.materialize.default
TO_BFLOAT16 = torch.ops.metis.to_bfloat16.default
