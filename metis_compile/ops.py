"""The operators that stand for quantization in a graph. Each runs the plain-torch numerics; no second definition.

`metis::quantize(x, spec, axis, noise?) -> [codes, block_scales?, tensor_scale?]` and its inverse
`metis::dequantize(parts, spec, axis, length)`; a spec is the text of a `QuantSpec`, such as "nvfp4 1x16 nearest".
`metis::materialize(x)` is the identity; it tells Inductor to compute x once, into a buffer.
"""

from __future__ import annotations

import torch

from metis_compile.numerics import QuantSpec, decode, encode

__all__ = ["DEQUANTIZE", "MATERIALIZE", "QUANTIZE", "dequantize", "materialize", "quantize"]


@torch.library.custom_op("metis::quantize", mutates_args=())
def quantize(x: torch.Tensor, spec: str, axis: int, noise: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Packed codes and scales of `x` along `axis`: see `metis_compile.numerics.encode`."""
    return [part.clone() for part in encode(x, QuantSpec.parse(spec), axis, noise)]


@quantize.register_fake
def _(x: torch.Tensor, spec: str, axis: int, noise: torch.Tensor | None = None) -> list[torch.Tensor]:
    return encode(x, QuantSpec.parse(spec), axis, noise)


@torch.library.custom_op("metis::dequantize", mutates_args=())
def dequantize(parts: list[torch.Tensor], spec: str, axis: int, length: int) -> torch.Tensor:
    """The float32 values that `parts` hold, `length` of them along `axis`."""
    return decode(parts, QuantSpec.parse(spec), axis, length).clone()


@dequantize.register_fake
def _(parts: list[torch.Tensor], spec: str, axis: int, length: int) -> torch.Tensor:
    return decode(parts, QuantSpec.parse(spec), axis, length)


@torch.library.custom_op("metis::materialize", mutates_args=())
def materialize(x: torch.Tensor) -> torch.Tensor:
    """`x`, as a buffer of its own in compiled code."""
    return x.clone()


@materialize.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


QUANTIZE = torch.ops.metis.quantize.default
DEQUANTIZE = torch.ops.metis.dequantize.default
MATERIALIZE = torch.ops.metis.materialize.default
