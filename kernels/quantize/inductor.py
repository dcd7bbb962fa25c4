"""Inductor's lowering of `metis::quantize_tiles`, into buffers that Inductor plans, and of the amaxes of tiles.

What a fallback allocates itself Inductor does not know to be aligned, and what reads it would load a byte at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from metis_compile.compat import (
    ExternKernel,
    FallbackKernel,
    TensorBox,
    empty_buffer,
    fallback_handler,
    graph_being_lowered,
    register_lowering,
)
from metis_compile.kernels.quantize.ops import (
    HELD_TILES_AMAX,
    QUANTIZE_TILES,
    QUANTIZE_TILES_INTO,
    SOURCES,
    TILES_AMAX,
)


@cache
def register_tile_lowering() -> None:
    """Registers the lowerings, once per process."""

    @register_lowering(QUANTIZE_TILES, type_promotion_kind=None)
    def quantize_tiles(*given: Any) -> list[TensorBox]:
        out = [empty_buffer(value) for value in graph_being_lowered().current_node.meta["val"]]
        source, (amax, seed, *how) = given[:SOURCES], given[SOURCES:]
        FallbackKernel.create(QUANTIZE_TILES_INTO, *_contiguous(source), amax, seed, out, *how)
        return out

    @register_lowering(TILES_AMAX, type_promotion_kind=None)
    def tiles_amax(*given: Any) -> TensorBox:
        return fallback_handler(TILES_AMAX)(*_contiguous(given[:SOURCES]), *given[SOURCES:])

    @register_lowering(HELD_TILES_AMAX, type_promotion_kind=None)
    def held_tiles_amax(*given: Any) -> list[TensorBox]:
        return fallback_handler(HELD_TILES_AMAX)(*_contiguous(given[:SOURCES]), *given[SOURCES:])


def _contiguous(source: Sequence[TensorBox | None]) -> list[Any]:
    return [None if tensor is None else ExternKernel.require_contiguous(tensor) for tensor in source]
