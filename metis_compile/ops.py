"""The operators that stand for quantization in a graph. Each runs the plain-torch numerics; no second definition.

A fake tensor has its arguments checked and its shape worked out, nothing more: a graph has hundreds of them.

`metis::quantize(x, spec, axis, seed?, stream, swizzled) -> [codes, block_scales?, tensor_scale?]` and its inverse
`metis::dequantize(parts, spec, axis, length)`; a spec is the text of a `QuantSpec`, such as "nvfp4 1x16 nearest".
Rounding at random draws its noise from the seed, an int64 tensor that the graph draws from torch's generator.
`metis::materialize(x)` is the identity; it tells Inductor to compute x once, into a buffer.
`metis::keep_(x)` does nothing; it counts as an effect of forward, so that forward computes x and backward reads that.
`metis::to_bfloat16(x)` is a cast that compilers do not drop where the result is cast back.
`metis::load` and `metis::store_` read and write slices of the tensors that hold what lives across steps.
"""

from __future__ import annotations

import math

import torch

from metis_compile.arguments import (
    check_axis,
    check_device,
    check_dtype,
    check_parts,
    check_seed,
    check_stream,
    check_swizzled,
    spec_of,
)
from metis_compile.numerics import QuantSpec, decode, encode, noise_shape, uniform_noise
from metis_compile.numerics.quantize import empty_parts, empty_values
from metis_compile.numerics.swizzle import swizzle

__all__ = [
    "DEQUANTIZE",
    "KEEP",
    "LOAD",
    "MATERIALIZE",
    "QUANTIZE",
    "STORE",
    "TO_BFLOAT16",
    "dequantize",
    "materialize",
    "quantize",
]

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
) -> list[torch.Tensor]:
    """Packed codes and scales of `x` along `axis`: see `metis_compile.numerics.encode`.

    seed, stream: what rounding at random takes its noise from, see `metis_compile.numerics.uniform_noise`. swizzled:
    whether block scales come as `metis_compile.numerics.swizzle` has them. Raises TypeError, ValueError or IndexError
    that names the argument, its value and what is supported.
    """
    parsed = _check_quantize(x, spec, axis, seed, stream, swizzled)
    parts = encode(x, parsed, axis, noise_of(x, parsed, axis, seed, stream))
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
) -> list[torch.Tensor]:
    return empty_parts(x, _check_quantize(x, spec, axis, seed, stream, swizzled), axis, swizzled)


def _check_quantize(
    x: torch.Tensor, text: str, axis: int, seed: torch.Tensor | None, stream: int, swizzled: bool
) -> QuantSpec:
    op = "metis::quantize"
    spec = spec_of(op, "spec", text)
    check_dtype(op, "x", x, *FLOATS)
    axis = check_axis(op, spec, axis, x.dim())
    check_seed(op, seed, spec, x)
    check_stream(op, "stream", stream)
    if swizzled:
        check_swizzled(op, "swizzled", spec, axis, x.dim(), swizzled)
    return spec


def noise_of(
    x: torch.Tensor, spec: QuantSpec, axis: int, seed: torch.Tensor | None, stream: int
) -> torch.Tensor | None:
    """The noise for `x`, or None where nothing is drawn."""
    return None if seed is None else uniform_noise(seed, stream, noise_shape(x.shape, spec, axis))


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


@torch.library.custom_op("metis::materialize", mutates_args=())
def materialize(x: torch.Tensor) -> torch.Tensor:
    """`x`, as a buffer of its own in compiled code."""
    return x.clone()


@materialize.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


# `metis::load(state, offset, shape)` reads a slice of a flat state tensor into a tensor of its own, and
# `metis::store_(state, value, offset)` writes one. The state of a backward graph is saved by forward; a write must not
# count as a change of what autograd saved, or several forwards before their backwards would be refused.
_library = torch.library.Library("metis", "FRAGMENT")
_library.define("load(Tensor state, int offset, int[] shape) -> Tensor")
_library.define("store_(Tensor(a!) state, Tensor value, int offset) -> ()")
_library.define("keep_(Tensor(a!) x) -> ()")
_library.define("to_bfloat16(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl(_library, "load", "CompositeExplicitAutograd")
def _load(state: torch.Tensor, offset: int, shape: list[int]) -> torch.Tensor:
    _check_slice("metis::load", state, offset, math.prod(shape))
    return state[offset : offset + math.prod(shape)].view(shape).clone()


@torch.library.impl(_library, "store_", "CompositeExplicitAutograd")
def _store(state: torch.Tensor, value: torch.Tensor, offset: int) -> None:
    _check_store(state, value, offset)
    state.data[offset : offset + value.numel()].copy_(value.reshape(-1))


def _check_slice(op: str, state: torch.Tensor, offset: int, count: int) -> None:
    if state.dim() != 1:
        raise ValueError(f"{op}: state must have one dimension, got shape {list(state.shape)}")
    if not 0 <= offset <= state.numel() - count:
        raise ValueError(f"{op}: offset must leave room for {count} of {state.numel()} elements, got {offset}")


def _check_store(state: torch.Tensor, value: torch.Tensor, offset: int) -> None:
    _check_slice("metis::store_", state, offset, value.numel())
    check_dtype("metis::store_", "value", value, state.dtype)
    check_device("metis::store_", "value", value, state, "state")


@torch.library.impl(_library, "keep_", "CompositeExplicitAutograd")
def _keep(x: torch.Tensor) -> None:
    return None


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


@torch.library.register_fake("metis::load", lib=_library)
def _(state: torch.Tensor, offset: int, shape: list[int]) -> torch.Tensor:
    _check_slice("metis::load", state, offset, math.prod(shape))
    return state.new_empty(shape)


@torch.library.register_fake("metis::store_", lib=_library)
def _(state: torch.Tensor, value: torch.Tensor, offset: int) -> None:
    _check_store(state, value, offset)


@torch.library.register_fake("metis::keep_", lib=_library)
def _(x: torch.Tensor) -> None:
    return None


QUANTIZE = torch.ops.metis.quantize.default
DEQUANTIZE = torch.ops.metis.dequantize.default
MATERIALIZE = torch.ops.metis.materialize.default
KEEP = torch.ops.metis.keep_.default
LOAD = torch.ops.metis.load.default
STORE = torch.ops.metis.store_.default
TO_BFLOAT16 = torch.ops.metis.to_bfloat16.default
