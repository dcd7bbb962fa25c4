"""The Triton quantize kernel as operators.

    quantize_tiles(SOURCE, amax?, seed?, spec, axes, streams) -> [codes, block_scales] for each axis, tensor_scale?
    quantize_tiles_into(SOURCE, amax?, seed?, out, spec, axes, streams)       the same, into tensors that are given
    tiles_amax(SOURCE, axis) -> amax                                          the largest magnitude of what is quantized

SOURCE is x, mean?, left?, right?, signs? for (x - mean - left right) H: see `conditioned.Source`,
`tiles.quantize_tiles` and `amax.tiles_amax`. Outputs are contiguous and alias nothing. Byte for byte what
`metis_compile.numerics` defines of a source; a thin product and a transform are to summation order what
`metis_compile.conditioning` defines. On CPU tensors it runs under Triton's interpreter alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.quantize import part_shapes

__all__ = ["QUANTIZE_TILES", "QUANTIZE_TILES_INTO", "TILES_AMAX"]

_library = torch.library.Library("metis", "FRAGMENT")
_SOURCE = "Tensor x, Tensor? mean, Tensor? left, Tensor? right, Tensor? signs"
_GIVEN = f"{_SOURCE}, Tensor? amax, Tensor? seed"
_HOW = "str spec, int[] axes, int[] streams"
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_contiguous_strides)
_library.define(f"quantize_tiles({_GIVEN}, {_HOW}) -> Tensor[]", tags=_TAGS)
_library.define(f"quantize_tiles_into({_GIVEN}, Tensor(a!)[] out, {_HOW}) -> ()", tags=_TAGS)
_library.define(f"tiles_amax({_SOURCE}, int axis) -> Tensor", tags=_TAGS)
SOURCES = 5  # tensors of a source


def _outputs(x: Tensor, *given: Any) -> list[Tensor]:
    spec, axes, _ = given[-3:]
    parsed, results = QuantSpec.parse(spec), []
    for axis in axes:
        codes, scales = part_shapes(parsed, x.shape, axis)
        results += [x.new_empty(codes, dtype=torch.uint8), x.new_empty(scales or (), dtype=parsed.fmt.scale_dtype)]
    return [*results, x.new_empty((), dtype=torch.float32)] if parsed.fmt.tensor_scale else results


def _quantize_tiles(*given: Any) -> list[Tensor]:
    out = _outputs(*given)
    _quantize_tiles_into(*given[:-3], out, *given[-3:])
    return out


def _quantize_tiles_into(*given: Any) -> None:
    from metis_compile.kernels.quantize.conditioned import Source  # imports Triton, which not every machine has
    from metis_compile.kernels.quantize.tiles import quantize_tiles

    amax, seed, out, spec, axes, streams = given[SOURCES:]
    source = Source(*given[:SOURCES])
    quantize_tiles(source, QuantSpec.parse(spec), axes, out=out, amax=amax, seed=seed, streams=streams)


def _tiles_amax(*given: Any) -> Tensor:
    from metis_compile.kernels.quantize.amax import tiles_amax
    from metis_compile.kernels.quantize.conditioned import Source

    return tiles_amax(Source(*given[:SOURCES]), given[SOURCES])


for _device in ("CUDA", "CPU"):
    _library.impl("quantize_tiles", _quantize_tiles, _device)
    _library.impl("quantize_tiles_into", _quantize_tiles_into, _device)
    _library.impl("tiles_amax", _tiles_amax, _device)
torch.library.register_fake("metis::quantize_tiles", _outputs, lib=_library)
torch.library.register_fake("metis::quantize_tiles_into", lambda *_: None, lib=_library)
torch.library.register_fake("metis::tiles_amax", lambda x, *_: x.new_empty((), dtype=torch.float32), lib=_library)

QUANTIZE_TILES = torch.ops.metis.quantize_tiles.default
QUANTIZE_TILES_INTO = torch.ops.metis.quantize_tiles_into.default
TILES_AMAX = torch.ops.metis.tiles_amax.default
