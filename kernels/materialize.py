"""Inductor's lowering of `metis::materialize`: compute the tensor once, into a buffer.

Without it Inductor inlines the arithmetic of a block's scale into the loop over the block's elements, and does it once
for each of them.
"""

from __future__ import annotations

from functools import cache

from metis_compile.compat import TensorBox, register_lowering
from metis_compile.ops.buffers import MATERIALIZE


@cache
def register_materialize() -> None:
    """Registers the lowering, once per process."""

    @register_lowering(MATERIALIZE, type_promotion_kind=None)
    def materialize(x: TensorBox) -> TensorBox:
        x.realize()
        return x
