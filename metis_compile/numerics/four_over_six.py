"""Four-over-six: an NVFP4 block's largest element is scaled to 6 or to 4, whichever gives the lower error.

Source: arXiv 2512.02010. E2M1 has nothing between 4 and 6; a block whose elements crowd there is better off with a
scale that is half as large again, and puts its largest element at 4. The tensor's scale leaves room for that: the
block with the largest element has the scale 256 or 384, both in E4M3, where NVFP4 otherwise has 448.

    enc     = min(256*6 / amax(tensor), fp32_max), dec = 1 / enc
    ideal_6 = amax(block) * (enc * (1/6)), times 17/16 under that guard;  ideal_4 = ideal_6 * 1.5
    scale_c, mult_c = as for NVFP4, of ideal_c
    error_c = (sum over the block of fixed(e(x * mult_c)) * scale_c) * scale_c        ("mae": * scale_c once)
    e(v)    = (|v| - q)^2 or ||v| - q|, q the rounded |v|;  "expected": (|v| - lo)(hi - |v|), plus (|v| - 6)^2 past 6
    scale   = scale_4 where error_4 < error_6, else scale_6.   A scale_6 of 0 loses to any other.

fixed() rounds to a multiple of 2^-16 (2^-18 for "mae"; 2^-12 and 2^-14 for 16x16 blocks), so that all sums are below
2^24 such multiples, exact in fp32: their order does not matter, and implementations agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.numerics.blocks import BlockLayout, anchor_of_sums
from metis_compile.numerics.elements import expected_square_error, round_magnitude, rounded_product
from metis_compile.numerics.formats import QuantSpec
from metis_compile.numerics.materialize import materialize
from metis_compile.numerics.scales import Scaling, nvfp4_ideal_scale, nvfp4_rounded_scale


def four_over_six_scaling(x: Tensor, layout: BlockLayout, spec: QuantSpec) -> Scaling:
    """The scales of fp32 x, each block's chosen by ``spec.select``. A block that is not finite keeps its scale to 6."""
    ideal, dec = nvfp4_ideal_scale(layout.amax(x), spec)
    six = nvfp4_rounded_scale(ideal, dec, spec)
    four = nvfp4_rounded_scale(ideal * 1.5, dec, spec)
    error_six = torch.where(six.scale == 0, torch.inf, _block_error(x, layout, spec, six))
    is_four = _block_error(x, layout, spec, four) < error_six
    scale = materialize(torch.where(is_four, four.scale, six.scale))
    multiplier = materialize(torch.where(is_four, four.multiplier, six.multiplier))
    return Scaling(multiplier, scale, scale, dec)


def _block_error(x: Tensor, layout: BlockLayout, spec: QuantSpec, scales: Scaling) -> Tensor:
    """The error of each block, in units that do not depend on its scale."""
    scaled = layout.split(x) * layout.spread(scales.multiplier, x.shape)
    if spec.select == "expected":
        error = expected_square_error(scaled, spec.element)
    else:
        magnitude = torch.abs(scaled)
        error = magnitude - round_magnitude(torch.clamp(magnitude, max=spec.element.max), spec.element)
        error = torch.abs(error) if spec.select == "mae" else rounded_product(error * error)  # "mse"
    total = layout.sum(layout.join(_fixed_point(error, spec), x.shape)) * scales.scale
    return total if spec.select == "mae" else total * scales.scale


def error_anchor(spec: QuantSpec) -> float:
    """What rounds an error to the multiples whose sums are exact, where it is added and taken away again."""
    # An element is off by less than 3, even where rounding a subnormal scale down pushes it from 6 to 9.
    return anchor_of_sums(18 if spec.select == "mae" else 16, spec)


def _fixed_point(error: Tensor, spec: QuantSpec) -> Tensor:
    anchor = error_anchor(spec)
    return (error + anchor) - anchor
