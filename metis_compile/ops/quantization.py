"""The operators that stand for quantization in a graph. Each runs the plain-torch numerics; no second definition.

A fake tensor has its arguments checked and its shape worked out, nothing more: a graph has hundreds of them.

`metis::quantize(x, spec, axis, seed?, stream, swizzled, amax?) -> [codes, block_scales?, tensor_scale?]` and its
inverse `metis::dequantize(parts, spec, axis, length)`; a spec is the text of a `QuantSpec`, such as
"nvfp4 1x16 nearest". Rounding at random draws its noise from the seed, an int64 tensor that the graph draws from
torch's generator. The scale of a tensor is made of its own largest magnitude, or of an amax that is given: see
`metis_compile.ops.held_amax`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from metis_compile.numerics import QuantSpec, decode, encode, noise_shape, uniform_noise
from metis_compile.numerics.quantize import empty_parts, empty_values
from metis_compile.numerics.swizzle import swizzle
from metis_compile.ops.checks import (
    check_amax,
    check_axis,
    check_dtype,
    check_parts,
    check_seed,
    check_stream,
    check_swizzled,
    spec_of,
)

__all__ = ["DEQUANTIZE", "QUANTIZE", "amax_of", "dequantize", "quantize"]

# what encode takes, and casts to float32
FLOATS = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)


@torch.library.custom_op("metis::quantize", mutates_args=())
def quantize(
    x: torch.Tensor,
    spec: str,
    axis: int,
    seed: torch.Tensor | None = None,
    stream: int = 0,
    swizzled: bool = False,
    amax: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Packed codes and scales of `x` along `axis`: see `metis_compile.numerics.encode`.

    seed, stream: what rounding at random takes its noise from, see `metis_compile.numerics.uniform_noise`. swizzled:
    whether block scales come as `metis_compile.numerics.swizzle` has them. amax: 0-dim float32, what the scale of the
    tensor is made of. Raises TypeError, ValueError or IndexError that names the argument, its value and what is
    supported.
    """
    parsed = _check_quantize(x, spec, axis, seed, stream, swizzled, amax)
    parts = encode(x, parsed, axis, noise_of(x, parsed, axis, seed, stream), amax)
    if swizzled:
        parts[1] = swizzle(parts[1], axis)
    return [part.clone(memory_format=torch.contiguous_format) for part in parts]


@quantize.register_fake
def _(
    x: torch.Tensor,
    spec: str,
    axis: int,
    seed: torch.Tensor | None = None,
    stream: int = 0,
    swizzled: bool = False,
    amax: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    return empty_parts(x, _check_quantize(x, spec, axis, seed, stream, swizzled, amax), axis, swizzled)


def _check_quantize(
    x: torch.Tensor,
    text: str,
    axis: int,
    seed: torch.Tensor | None,
    stream: int,
    swizzled: bool,
    amax: torch.Tensor | None,
) -> QuantSpec:
    op = "metis::quantize"
    spec = spec_of(op, "spec", text)
    check_dtype(op, "x", x, *FLOATS)
    axis = check_axis(op, spec, axis, x.dim())
    check_seed(op, seed, spec, x)
    check_stream(op, "stream", stream)
    if swizzled:
        check_swizzled(op, "swizzled", spec, axis, x.dim(), swizzled)
    check_amax(op, amax, spec, x)
    return spec


def noise_of(
    x: torch.Tensor, spec: QuantSpec, axis: int, seed: torch.Tensor | None, stream: int
) -> torch.Tensor | None:
    """The noise for `x`, or None where nothing is drawn."""
    return None if seed is None else uniform_noise(seed, stream, noise_shape(x.shape, spec, axis))


def amax_of(node: fx.Node) -> Any:
    """The amax that a `metis::quantize` node is given, by name or, where a graph was traced again, by its place."""
    return node.kwargs.get("amax", node.args[6] if len(node.args) > 6 else None)


@torch.library.custom_op("metis::dequantize", mutates_args=())
def dequantize(parts: list[torch.Tensor], spec: str, axis: int, length: int) -> torch.Tensor:
    """The float32 values that `parts` hold, `length` of them along `axis`. Raises as `quantize` does."""
    parsed = _check_dequantize(parts, spec, axis, length)
    return decode(parts, parsed, axis, length).clone(memory_format=torch.contiguous_format)


@dequantize.register_fake
def _(parts: list[torch.Tensor], spec: str, axis: int, length: int) -> torch.Tensor:
    return empty_values(parts, _check_dequantize(parts, spec, axis, length), axis, length)


def _check_dequantize(parts: list[torch.Tensor], text: str, axis: int, length: int) -> QuantSpec:
    spec = spec_of("metis::dequantize", "spec", text)
    check_parts("metis::dequantize", parts, spec, axis, length)
    return spec


QUANTIZE = torch.ops.metis.quantize.default
DEQUANTIZE = torch.ops.metis.dequantize.default
