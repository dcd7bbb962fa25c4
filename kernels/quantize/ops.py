"""The Triton quantize kernel as operators.

    quantize_tiles(SOURCE, amax?, seed?, HOW) -> [codes, block_scales] for each axis, tensor_scale?
    quantize_tiles_into(SOURCE, amax?, seed?, out, HOW)       the same, into tensors that are given
    tiles_amax(SOURCE, axis) -> amax                          the largest magnitude of what is quantized
    held_tiles_amax(SOURCE, axis, kept, every) -> (amax, kept)      the same, held: see `metis_compile.ops.held_amax`

HOW is spec, axes, streams, swizzled: the last names those of the axes whose block scales lie as
`metis_compile.numerics.swizzle` has them, none unless it says so.

SOURCE is x, mean?, left?, right?, signs? for (x - mean - left right) H: see `source.Source`, `tiles.quantize_tiles` and
`amax.tiles_amax`. Outputs are contiguous and alias nothing. Byte for byte what
`metis_compile.numerics` defines of a source; a thin product and a transform are to summation order what
`metis_compile.conditioning` defines. On CPU tensors it runs under Triton's interpreter alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metis_compile.kernels.quantize.source import Source, check_amax, check_out, check_tiles, outputs_of
from metis_compile.numerics import QuantSpec
from metis_compile.ops.held_amax import check_kept, held_or_measured

__all__ = ["HELD_TILES_AMAX", "QUANTIZE_TILES", "QUANTIZE_TILES_INTO", "TILES_AMAX"]

_library = torch.library.Library("metis", "FRAGMENT")
_SOURCE = "Tensor x, Tensor? mean, Tensor? left, Tensor? right, Tensor? signs"
_GIVEN = f"{_SOURCE}, Tensor? amax, Tensor? seed"
_HOW = "str spec, int[] axes, int[] streams, int[] swizzled=[]"
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_contiguous_strides)
_library.define(f"quantize_tiles({_GIVEN}, {_HOW}) -> Tensor[]", tags=_TAGS)
_library.define(f"quantize_tiles_into({_GIVEN}, Tensor(a!)[] out, {_HOW}) -> ()", tags=_TAGS)
_library.define(f"tiles_amax({_SOURCE}, int axis) -> Tensor", tags=_TAGS)
_library.define(
    f"held_tiles_amax({_SOURCE}, int axis, Tensor kept, int every) -> (Tensor, Tensor)",
    tags=(*_TAGS, torch.Tag.cudagraph_unsafe),  # it looks at `kept`
)
SOURCES = 5  # tensors of a source


def _fake_tiles(*given: Any) -> list[Tensor]:
    how = check_tiles("metis::quantize_tiles", Source(*given[:SOURCES]), *given[SOURCES:])
    return [given[0].new_empty(shape, dtype=dtype) for shape, dtype in outputs_of(given[0].shape, *how)]


def _quantize_tiles(*given: Any) -> list[Tensor]:
    out = _fake_tiles(*given)
    _run("metis::quantize_tiles", Source(*given[:SOURCES]), out, *given[SOURCES:])
    return out


def _fake_tiles_into(*given: Any) -> None:
    amax, seed, out, *how = given[SOURCES:]
    op, source = "metis::quantize_tiles_into", Source(*given[:SOURCES])
    check_out(op, out, source.x, *check_tiles(op, source, amax, seed, *how))


def _quantize_tiles_into(*given: Any) -> None:
    _fake_tiles_into(*given)
    amax, seed, out, *how = given[SOURCES:]
    _run("metis::quantize_tiles_into", Source(*given[:SOURCES]), out, amax, seed, *how)


def _run(
    op: str,
    source: Source,
    out: Sequence[Tensor],
    amax: Tensor | None,
    seed: Tensor | None,
    spec: str,
    axes: Sequence[int],
    streams: Sequence[int],
    swizzled: Sequence[int] = (),
) -> None:
    from metis_compile.kernels.quantize.tiles import quantize_tiles  # imports Triton, which not every machine has

    source.check_strides(op, **{f"out[{i}]": tensor for i, tensor in enumerate(out)})
    axes, swizzled = ([axis % source.x.dim() for axis in each] for each in (axes, swizzled))
    parsed = QuantSpec.parse(spec)
    quantize_tiles(source, parsed, axes, out=out, amax=amax, seed=seed, streams=streams, swizzled=swizzled)


def _fake_amax(*given: Any) -> Tensor:
    check_amax("metis::tiles_amax", Source(*given[:SOURCES]), given[SOURCES])
    return given[0].new_empty((), dtype=torch.float32)  # type: ignore[no-any-return]


def _tiles_amax(*given: Any) -> Tensor:
    from metis_compile.kernels.quantize.amax import tiles_amax

    source = Source(*given[:SOURCES])
    axis = check_amax("metis::tiles_amax", source, given[SOURCES])
    source.check_strides("metis::tiles_amax")
    return tiles_amax(source, axis)


def _fake_held_amax(*given: Any) -> tuple[Tensor, Tensor]:
    *source, kept, every = given
    check_kept("metis::held_tiles_amax", kept, every)
    check_amax("metis::held_tiles_amax", Source(*source[:SOURCES]), source[SOURCES])
    return source[0].new_empty((), dtype=torch.float32), torch.empty_like(kept)


def _held_tiles_amax(*given: Any) -> tuple[Tensor, Tensor]:
    *source, kept, every = given
    check_kept("metis::held_tiles_amax", kept, every)
    return held_or_measured(source[0], kept, every, lambda: _tiles_amax(*source))


for _device in ("CUDA", "CPU"):
    _library.impl("quantize_tiles", _quantize_tiles, _device)
    _library.impl("quantize_tiles_into", _quantize_tiles_into, _device)
    _library.impl("tiles_amax", _tiles_amax, _device)
    _library.impl("held_tiles_amax", _held_tiles_amax, _device)
torch.library.register_fake("metis::quantize_tiles", _fake_tiles, lib=_library)
torch.library.register_fake("metis::quantize_tiles_into", _fake_tiles_into, lib=_library)
torch.library.register_fake("metis::tiles_amax", _fake_amax, lib=_library)
torch.library.register_fake("metis::held_tiles_amax", _fake_held_amax, lib=_library)

QUANTIZE_TILES = torch.ops.metis.quantize_tiles.default
QUANTIZE_TILES_INTO = torch.ops.metis.quantize_tiles_into.default
HELD_TILES_AMAX = torch.ops.metis.held_tiles_amax.default
TILES_AMAX = torch.ops.metis.tiles_amax.default
