"""The one definition of what quantizing a tensor means; kernels and graph rewrites are checked against it.

``fake_quantize`` and ``decode(encode(x))`` agree bit for bit. All of it is plain torch on fp32 values: it
runs eagerly, under torch.compile, on fake tensors and with symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.numerics.blocks import BlockLayout, pad_to_multiple, take_first
from metis_compile.numerics.e8m0 import e8m0_from_bytes, e8m0_to_bytes, e8m0_value
from metis_compile.numerics.eden import eden_scaling
from metis_compile.numerics.elements import element_codes, element_values, round_to_element
from metis_compile.numerics.formats import QuantSpec
from metis_compile.numerics.four_over_six import four_over_six_scaling
from metis_compile.numerics.scales import Scaling, scaling
from metis_compile.numerics.swizzle import is_swizzled, swizzled_shape, unswizzle


def encode(
    x: Tensor, spec: QuantSpec, axis: int, noise: Tensor | None = None, amax: Tensor | None = None
) -> list[Tensor]:
    """Quantize to codes and scales.

    x: any strides; fp32, or narrower, which goes to fp32 first. noise: fp32 uniform in [0, 1) of :func:`noise_shape`,
    for stochastic rounding (of the elements) and eden (of the block scales) only: a magnitude goes up where
    frac(|v| / step) + noise >= 1. amax: 0-dim fp32, what the scale of the tensor is made of in place of x's own largest
    magnitude, such as one that was held (see `held_amax`); of formats that have such a scale. Values above it saturate.

    The code of a NaN is the element's `nan`, 0x7F in E4M3 and E5M2, whatever its sign and payload: hardware differs in
    the sign of a NaN that it makes, as of infinity times 0. E2M1 has none, and its code is 0.

    Returns [codes, block_scales, tensor_scale], of these only what the format has (fp8 has block_scales or,
    with block "tensor", tensor_scale). codes: uint8; one to a byte in x's shape; E2M1 two to a byte along
    ``axis`` (ceil(n / 2)), the lower index in the low nibble, 0 behind an odd end. block_scales: x's shape
    with the blocked dimensions replaced by ceil(n / size) ("row": by 1); of the scale's dtype, uint8 where torch has
    none, or float32 that codes are multiplied by. tensor_scale: 0-dim float32 that codes are multiplied by.

    Raises TypeError for x's dtype, IndexError for the axis, ValueError for noise, an amax or a 2-D block that does
    not fit.
    """
    layout, rounded, scales = _quantize(x, spec, axis, noise, amax)
    if spec.element.dtype is None:
        codes = layout.join(element_codes(rounded, spec.element), x.shape)
        codes = _pack(codes, layout.axis) if spec.element.codes_per_byte == 2 else codes.to(torch.uint8)
    else:
        rounded = layout.join(rounded, x.shape)
        codes = rounded.to(spec.element.dtype).view(torch.uint8)
        codes = torch.where(rounded == rounded, codes, spec.element.nan or 0)
    parts = [codes, _store(scales.stored, spec)]
    return parts if scales.tensor_scale is None else [*parts, scales.tensor_scale]


def empty_parts(x: Tensor, spec: QuantSpec, axis: int, swizzled: bool = False) -> list[Tensor]:
    """What :func:`encode` returns for x, contiguous and not filled in. Errors as there, but for the noise.

    swizzled: with room for swizzled block scales, of a format that has such.
    """
    _check_dtype(x)
    codes, scales = part_shapes(spec, x.shape, axis, swizzled)
    parts = [x.new_empty(codes, dtype=torch.uint8)]
    if scales is not None:
        parts.append(x.new_empty(scales, dtype=spec.fmt.scale_dtype))
    if scales is None or spec.fmt.tensor_scale:
        parts.append(x.new_empty((), dtype=torch.float32))
    return parts


def part_shapes(
    spec: QuantSpec, shape: Sequence[Any], axis: int, swizzled: bool = False
) -> tuple[list[Any], list[Any] | None]:
    """The shapes of the codes and of the block scales of a tensor; None for what the format has not."""
    layout = BlockLayout.of(spec, len(shape), axis)
    codes = list(shape)
    if spec.element.codes_per_byte == 2:
        codes[layout.axis] = (shape[layout.axis] + 1) // 2
    if layout.tensor:
        return codes, None
    scales = layout.scales_shape(shape)
    return codes, swizzled_shape(scales, layout.axis) if swizzled else scales


def decode(
    parts: Sequence[Tensor], spec: QuantSpec, axis: int, length: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The values that :func:`encode` stored. length: the original size along ``axis``. Block scales may be swizzled."""
    codes, stored = parts[0], parts[1]
    layout = BlockLayout.of(spec, codes.dim(), axis)
    if spec.element.dtype is None:
        one_each = _unpack(codes, layout.axis, length) if spec.element.codes_per_byte == 2 else codes.to(torch.int32)
        values = element_values(one_each, spec.element)
    else:
        values = codes.view(spec.element.dtype).to(torch.float32)
    if is_swizzled(spec, codes.dim(), stored.dim()):
        stored = unswizzle(stored, layout.scales_shape(values.shape), layout.axis)
    result = layout.split(values) * layout.spread(_load(stored, spec), values.shape)
    if spec.fmt.tensor_scale:
        result = result * parts[2]
    return layout.join(result, values.shape).to(dtype)


def magnitude_limits(parts: Sequence[Tensor], spec: QuantSpec, axis: int, length: int) -> Tensor:
    """The largest magnitude that each element could have been stored as, under the scales in `parts`.

    float32, one for each element of what :func:`encode` was given. The other arguments as for :func:`decode`.
    """
    layout = BlockLayout.of(spec, parts[0].dim(), axis)
    shape = list(parts[0].shape)
    shape[layout.axis] = length
    limits = layout.spread(scale_values(parts, spec), shape) * spec.element.max
    if spec.fmt.tensor_scale:
        limits = limits * parts[2]
    ones = limits.new_ones(()).expand(shape)
    return layout.join(layout.split(ones) * limits, shape)


def scale_values(parts: Sequence[Tensor], spec: QuantSpec) -> Tensor:
    """The block scales in `parts` as float32, without that of the whole tensor, in the shape that `encode` stores."""
    stored = parts[1]
    if is_swizzled(spec, parts[0].dim(), stored.dim()):
        raise ValueError("parts must hold block scales as they lie in the tensor, got swizzled ones")
    return _load(stored, spec)


def empty_values(parts: Sequence[Tensor], spec: QuantSpec, axis: int, length: int) -> Tensor:
    """What :func:`decode` returns for these parts, float32, contiguous and not filled in."""
    codes = parts[0]
    shape = list(codes.shape)
    shape[BlockLayout.of(spec, codes.dim(), axis).axis] = length
    return codes.new_empty(shape, dtype=torch.float32)


def fake_quantize(
    x: Tensor,
    spec: QuantSpec,
    axis: int,
    noise: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    amax: Tensor | None = None,
) -> Tensor:
    """``decode(encode(x))`` without the codes: x's shape, in ``dtype``. Arguments and errors as for :func:`encode`."""
    layout, rounded, scales = _quantize(x, spec, axis, noise, amax)
    result = rounded * layout.spread(scales.scale, x.shape)
    if scales.tensor_scale is not None:
        result = result * scales.tensor_scale
    return layout.join(result, x.shape).to(dtype)


def noise_shape(shape: Sequence[int], spec: QuantSpec, axis: int) -> list[int]:
    """The shape of the noise for a tensor of `shape`: a number for each element or, for eden, for each block scale."""
    return BlockLayout.of(spec, len(shape), axis).scales_shape(shape) if spec.rounding == "eden" else list(shape)


def _quantize(
    x: Tensor, spec: QuantSpec, axis: int, noise: Tensor | None, amax: Tensor | None
) -> tuple[BlockLayout, Tensor, Scaling]:
    """Rounded fp32 elements, split into blocks, and their scales."""
    _check_dtype(x)
    layout = BlockLayout.of(spec, x.dim(), axis)
    _check_noise(noise, spec, noise_shape(x.shape, spec, axis))
    _check_amax(amax, spec)
    if x.requires_grad:
        x = x.detach()
    x = x.to(torch.float32)
    if spec.rounding == "eden":
        assert noise is not None
        scales, noise = eden_scaling(x, layout, spec, noise, amax), None
    else:
        scales = scaling_of(x, layout, spec, amax)
    scaled = layout.split(x) * layout.spread(scales.multiplier, x.shape)
    rounded = round_to_element(scaled, spec.element, None if noise is None else layout.split(noise))
    return layout, rounded, scales


def scaling_of(x: Tensor, layout: BlockLayout, spec: QuantSpec, amax: Tensor | None = None) -> Scaling:
    """The scales of fp32 x, of a spec that does not round these at random. amax: as for :func:`encode`."""
    if spec.select:
        return four_over_six_scaling(x, layout, spec)
    block_amax = amax if amax is not None and layout.tensor else layout.amax(x)
    return scaling(block_amax, spec, amax)


def _store(scale: Tensor, spec: QuantSpec) -> Tensor:
    """Scales in their own dtype, of fp32 values or int32 exponents. A NaN may have any sign; its code has none."""
    scale_type = spec.fmt.scale_type
    if scale_type.kind == "exponent":
        return e8m0_from_bytes(scale.to(torch.uint8))
    if scale_type.kind == "float32":
        return scale
    grid = scale_type.minifloat
    return element_codes(scale.abs(), grid).to(torch.uint8) if grid.dtype is None else scale.abs().to(grid.dtype)


def _load(stored: Tensor, spec: QuantSpec) -> Tensor:
    """The fp32 values of stored scales."""
    scale_type = spec.fmt.scale_type
    if scale_type.kind == "exponent":
        return e8m0_value(e8m0_to_bytes(stored).to(torch.int32))
    if scale_type.kind == "float32":
        return stored.to(torch.float32)
    grid = scale_type.minifloat
    return element_values(stored.to(torch.int32), grid) if grid.dtype is None else stored.to(torch.float32)


def _check_dtype(x: Tensor) -> None:
    if not x.dtype.is_floating_point or x.dtype == torch.float64:
        raise TypeError(f"x must be float32, bfloat16, float16 or float8 to be quantized, got {x.dtype}")


def _check_noise(noise: Tensor | None, spec: QuantSpec, shape: Sequence[int]) -> None:
    if noise is None:
        if spec.needs_noise:
            raise ValueError(f"noise must be given when rounding is {spec.rounding!r}, got None")
        return
    if not spec.needs_noise:
        raise ValueError("noise must be None when rounding is 'nearest', got a tensor")
    if noise.dtype != torch.float32:
        raise ValueError(f"noise must be float32, got {noise.dtype}")
    if noise.dim() != len(shape) or any(a != b for a, b in zip(noise.shape, shape, strict=True)):
        whose = "x's" if spec.stochastic else "the block scales'"
        raise ValueError(f"noise must have {whose} shape {tuple(shape)}, got {tuple(noise.shape)}")


def _check_amax(amax: Tensor | None, spec: QuantSpec) -> None:
    if amax is None:
        return
    if not spec.holds_amax:
        raise ValueError(f"amax must be None for {str(spec)!r}, {spec.why_not_held}, got a tensor")
    if amax.dtype != torch.float32 or amax.dim() != 0:
        raise ValueError(f"amax must be float32 without dimensions, got {amax.dtype} {tuple(amax.shape)}")


def _pack(codes: Tensor, axis: int) -> Tensor:
    """fp32 codes 0..15 -> uint8, two along ``axis`` in each, the lower index in the low nibble."""
    codes = pad_to_multiple(codes, axis, 2)
    pairs = codes.unflatten(axis, (codes.shape[axis] // 2, 2))
    return (pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1) * 16).to(torch.uint8)


def _unpack(packed: Tensor, axis: int, length: int) -> Tensor:
    """uint8 pairs -> int32 codes 0..15, ``length`` of them along ``axis``."""
    shift = torch.arange(2, dtype=torch.int32, device=packed.device) * 4
    shift = shift.reshape([2] + [1] * (packed.dim() - 1 - axis))
    codes = ((packed.to(torch.int32).unsqueeze(axis + 1) >> shift) & 15).flatten(axis, axis + 1)
    return codes if statically_known_true(length % 2 == 0) else take_first(codes, axis, length)
