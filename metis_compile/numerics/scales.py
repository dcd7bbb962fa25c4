"""Block scales: from the largest magnitude of each block to what its elements are multiplied by.

Sources: NVFP4, arXiv 2509.25149 appendix B, in the operation order written at :func:`nvfp4_scaling`; E8M0,
OCP Microscaling Formats (MX) v1.0 section 6.3 for "floor", and the rounding of Microxcaling for "even".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.numerics.e8m0 import E8M0_NAN, e8m0_inverse, e8m0_value
from metis_compile.numerics.elements import round_magnitude, round_magnitude_up
from metis_compile.numerics.formats import QuantSpec
from metis_compile.numerics.materialize import materialize

FP32_MAX = torch.finfo(torch.float32).max


class Scaling(NamedTuple):
    """The scales of a tensor: per-block tensors are fp32 and have one value per block."""

    multiplier: Tensor  # an element is rounded after multiplying by this
    scale: Tensor  # a rounded element is multiplied by this to get it back (nvfp4: and by tensor_scale)
    stored: Tensor  # what `scale` is stored from: the fp32 scale, or the int32 E8M0 byte
    tensor_scale: Tensor | None = None  # nvfp4's `dec`, 0-dim fp32


def scaling(block_amax: Tensor, spec: QuantSpec, amax: Tensor | None = None) -> Scaling:
    """The scales for fp32 block maxima of magnitude, as the spec's format defines them.

    amax: what the scale of the tensor is made of, 0-dim fp32, where the format has one; None: the largest of them.
    """
    scale = spec.fmt.scale_type
    if scale.kind not in _SCALINGS:
        raise ValueError(
            f"kind of scale {scale.name!r} must be one of {', '.join(map(repr, _SCALINGS))}, got {scale.kind!r}"
        )
    if scale.kind == "minifloat":
        return nvfp4_scaling(block_amax, spec, amax)
    return _SCALINGS[scale.kind](block_amax if amax is None else amax, spec)


def nvfp4_scaling(block_amax: Tensor, spec: QuantSpec, amax: Tensor | None = None) -> Scaling:
    """enc = min(448*6 / amax, fp32_max), 1 where amax is 0;  dec = 1 / enc;
    scale = e4m3(min(block_amax * (enc * (1/6)), 448));  multiplier = min(1 / (scale * dec), fp32_max).

    6 and 448 are the largest element and the largest scale: other minifloats have theirs. amax: of the tensor, where
    another is to be taken."""
    ideal, dec = nvfp4_ideal_scale(block_amax, spec, amax)
    return nvfp4_rounded_scale(ideal, dec, spec)


def nvfp4_ideal_scale(block_amax: Tensor, spec: QuantSpec, amax: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Block scales before they are rounded, the spec's largest_scale where the tensor's amax is; and `dec`."""
    if amax is None:
        amax = torch.amax(block_amax) if _has_elements(block_amax) else block_amax.new_zeros(())
    enc = materialize(_encode_scale(amax, spec.largest_scale * spec.element.max))
    dec = materialize(_over(1.0, enc))
    ideal = block_amax * (enc * (1 / spec.element.max))
    return (ideal if spec.guard_factor == 1 else ideal * spec.guard_factor), dec


def nvfp4_rounded_scale(ideal: Tensor, dec: Tensor, spec: QuantSpec) -> Scaling:
    """What :func:`nvfp4_scaling` makes of ideal block scales."""
    round_scale = round_magnitude_up if spec.guard == "round_up" else round_magnitude
    grid = spec.fmt.scale_type.minifloat
    scale = materialize(round_scale(torch.clamp(ideal, max=grid.max), grid))
    return Scaling(nvfp4_multiplier(scale, dec), scale, scale, dec)


def nvfp4_multiplier(scale: Tensor, dec: Tensor) -> Tensor:
    """What elements are multiplied by before rounding, finite where a scale is 0."""
    return materialize(torch.clamp(_over(1.0, scale * dec), max=FP32_MAX))


def fp32_scaling(block_amax: Tensor, spec: QuantSpec) -> Scaling:
    """enc = min(element_max / amax, fp32_max), 1 where amax is 0;  scale = 1 / enc;  multiplier = enc.

    "power_of_two": enc is rounded down to 2^floor(log2 enc) first, so that its scale is one too and nothing clips.
    """
    enc = _encode_scale(block_amax, spec.element.max)
    if spec.scale_mode == "power_of_two":
        # Its exponent bits alone; NaN has mantissa bits, without which it would be infinity.
        power = (materialize(enc).view(torch.int32) & 0x7F800000).view(torch.float32)
        enc = torch.where(enc == enc, power, torch.nan)
    enc = materialize(enc)
    dec = materialize(_over(1.0, enc))
    return Scaling(enc, dec, dec)


def e8m0_scaling(block_amax: Tensor, spec: QuantSpec) -> Scaling:
    """scale = 2^(byte - 127), multiplier = its inverse; byte 255 is NaN: the block is not finite."""
    byte = materialize(_e8m0_byte(block_amax, spec))
    return Scaling(materialize(e8m0_inverse(byte)), materialize(e8m0_value(byte)), byte)


def _e8m0_byte(block_amax: Tensor, spec: QuantSpec) -> Tensor:
    """int32 biased exponents, of amax's bits plus what carries into the exponent where the mode rounds up."""
    bits = block_amax.view(torch.int32)
    byte = torch.clamp(((bits + e8m0_carry(spec)) >> 23) - spec.element.max_exponent, min=0)
    # Compared as a float: a NaN may have any sign bit once a vectorized maximum has passed it on.
    return torch.where(block_amax <= FP32_MAX, byte, E8M0_NAN)


def e8m0_carry(spec: QuantSpec) -> int:
    """What is added to the bits of an amax before its exponent is taken, 0 for other scales."""
    element = spec.element
    if spec.fmt.scale_type.kind != "exponent":
        return 0
    if spec.guard == "round_up" or spec.scale_mode == "rceil":
        # Up to the mantissa field of element.max, whose leading one is at 2^max_exponent.
        return 2**23 - 1 - int((element.max / 2.0**element.max_exponent - 1) * 2**23)
    if spec.scale_mode == "even":
        return 2 ** (22 - element.mantissa_bits)
    if spec.scale_mode == "floor":
        return 0
    raise ValueError(f"scale_mode of E8M0 scales must be 'floor', 'rceil' or 'even', got {spec.scale_mode!r}")


def _encode_scale(amax: Tensor, target: float) -> Tensor:
    return torch.where(amax == 0, 1.0, torch.clamp(_over(target, amax), max=FP32_MAX))


def _over(numerator: float, x: Tensor) -> Tensor:
    # A tensor over a tensor: `numerator / x` is reciprocal(x) * numerator in torch, which rounds twice, and
    # reciprocal(x) an approximation in the Triton kernels of torch 2.11's Inductor.
    return torch.full_like(x, numerator) / x


def _has_elements(x: Tensor) -> bool:
    return not statically_known_true(x.numel() == 0)


_SCALINGS = {"minifloat": nvfp4_scaling, "exponent": e8m0_scaling, "float32": fp32_scaling}
