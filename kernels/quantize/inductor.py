"""Inductor's lowering of `metis::quantize_tiles`: into buffers that Inductor plans.

What a fallback allocates itself Inductor does not know to be aligned, and what reads it would load a byte at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from metis_compile.compat import (
    ExternKernel,
    FallbackKernel,
    TensorBox,
    empty_buffer,
    graph_being_lowered,
    register_lowering,
)
from metis_compile.kernels.quantize.ops import QUANTIZE_TILES, QUANTIZE_TILES_INTO


@cache
def register_tile_lowering() -> None:
    """Registers the lowering, once per process."""

    @register_lowering(QUANTIZE_TILES, type_promotion_kind=None)
    def quantize_tiles(
        x: TensorBox,
        mean: TensorBox | None,
        amax: TensorBox | None,
        seed: TensorBox | None,
        spec: str,
        axes: Sequence[int],
        streams: Sequence[int],
    ) -> list[TensorBox]:
        out = [empty_buffer(value) for value in graph_being_lowered().current_node.meta["val"]]
        contiguous = ExternKernel.require_contiguous(x)
        FallbackKernel.create(QUANTIZE_TILES_INTO, contiguous, mean, amax, seed, out, spec, axes, streams)
        return out
