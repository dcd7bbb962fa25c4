"""The Triton quantize kernel as operators.

    quantize_tiles(x, mean?, amax?, seed?, spec, axes, streams) -> [codes, block_scales] for each axis, tensor_scale?
    quantize_tiles_into(x, mean?, amax?, seed?, out, spec, axes, streams)        the same, into tensors that are given

See `tiles.quantize_tiles`. Outputs are contiguous and alias nothing. Byte for byte what `metis_compile.numerics`
defines. On CPU tensors it runs under Triton's interpreter alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.quantize import part_shapes

__all__ = ["QUANTIZE_TILES", "QUANTIZE_TILES_INTO"]

_library = torch.library.Library("metis", "FRAGMENT")
_GIVEN = "Tensor x, Tensor? mean, Tensor? amax, Tensor? seed"
_HOW = "str spec, int[] axes, int[] streams"
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_contiguous_strides)
_library.define(f"quantize_tiles({_GIVEN}, {_HOW}) -> Tensor[]", tags=_TAGS)
_library.define(f"quantize_tiles_into({_GIVEN}, Tensor(a!)[] out, {_HOW}) -> ()", tags=_TAGS)


def _outputs(
    x: Tensor,
    mean: Tensor | None,
    amax: Tensor | None,
    seed: Tensor | None,
    spec: str,
    axes: list[int],
    streams: list[int],
) -> list[Tensor]:
    parsed, results = QuantSpec.parse(spec), []
    for axis in axes:
        codes, scales = part_shapes(parsed, x.shape, axis)
        results += [x.new_empty(codes, dtype=torch.uint8), x.new_empty(scales or (), dtype=parsed.fmt.scale_dtype)]
    return [*results, x.new_empty((), dtype=torch.float32)] if parsed.fmt.tensor_scale else results


def _quantize_tiles(
    x: Tensor,
    mean: Tensor | None,
    amax: Tensor | None,
    seed: Tensor | None,
    spec: str,
    axes: list[int],
    streams: list[int],
) -> list[Tensor]:
    out = _outputs(x, mean, amax, seed, spec, axes, streams)
    _quantize_tiles_into(x, mean, amax, seed, out, spec, axes, streams)
    return out


def _quantize_tiles_into(
    x: Tensor,
    mean: Tensor | None,
    amax: Tensor | None,
    seed: Tensor | None,
    out: list[Tensor],
    spec: str,
    axes: list[int],
    streams: list[int],
) -> None:
    from metis_compile.kernels.quantize.tiles import quantize_tiles  # imports Triton, which not every machine has

    quantize_tiles(x, QuantSpec.parse(spec), axes, out=out, mean=mean, amax=amax, seed=seed, streams=streams)


for _device in ("CUDA", "CPU"):
    _library.impl("quantize_tiles", _quantize_tiles, _device)
    _library.impl("quantize_tiles_into", _quantize_tiles_into, _device)
torch.library.register_fake("metis::quantize_tiles", _outputs, lib=_library)
torch.library.register_fake("metis::quantize_tiles_into", lambda *_: None, lib=_library)

QUANTIZE_TILES = torch.ops.metis.quantize_tiles.default
QUANTIZE_TILES_INTO = torch.ops.metis.quantize_tiles_into.default
