"""Eden rounding: NVFP4 elements to nearest, and block scales that make up, at random, for what that takes.

Source: MS-EDEN of arXiv 2601.22813, after EDEN (arXiv 2108.08842). Rounding to nearest makes a block x into another,
Q(x), that is too short or too long along x itself. Scaled by <x, x> / <x, Q(x)> it is not; E4M3 is too coarse for that
factor, so the corrected scale is rounded at random, with the right mean. Along x, each block is then unbiased; across
x, to the degree to which it was turned at random before, by a Hadamard transform whose signs are drawn in every step.
One random number serves a block. On normal data the mean square error is 0.43 of stochastic rounding's, and under a
transform of 16 elements the bias is 0.03 of the error's root mean square, all of it across.

    enc, dec  = as for four-over-six: the block that holds the tensor's amax has the scale 256, with room above
    ideal     = amax(block) * (enc * (1/6))
    mult      = min(1 / (ideal * dec), fp32_max)                       # ideal is not rounded: nothing clips
    v         = min(|x * mult|, 6)
    q         = e2m1_rne(v)
    factor    = sum over the block of fixed(v * v)  /  sum over the block of fixed(v * q);   1 where the latter is 0
    scale     = e4m3_stochastic(min(ideal * factor, 448))              # by the block's one number
    value     = q, with x's sign, * scale * dec

fixed() rounds to a multiple of 2^-14 (2^-10 for 16x16 blocks), so that all sums are at most 576 * 2^14 such multiples,
exact in fp32: their order does not matter, and implementations agree bit for bit. The factor lies below 1.25 (1.45
for 16x16 blocks): no scale reaches 448, unless the tensor's amax is one that was held and blocks have grown since.

The number of a block is the noise at the block scale's own row-major position among the stored block scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.numerics.blocks import BlockLayout, anchor_of_sums
from metis_compile.numerics.elements import round_magnitude, round_magnitude_stochastically, rounded_product
from metis_compile.numerics.formats import QuantSpec
from metis_compile.numerics.materialize import materialize
from metis_compile.numerics.scales import Scaling, nvfp4_ideal_scale, nvfp4_multiplier


def eden_scaling(x: Tensor, layout: BlockLayout, spec: QuantSpec, noise: Tensor, amax: Tensor | None = None) -> Scaling:
    """The scales of fp32 x, of which elements are then rounded to nearest. noise: fp32 in [0, 1), one per block.

    amax: of the tensor, where another is to be taken.
    """
    ideal, dec = nvfp4_ideal_scale(layout.amax(x), spec, amax)
    multiplier = nvfp4_multiplier(ideal, dec)
    v = torch.clamp(torch.abs(layout.split(x) * layout.spread(multiplier, x.shape)), max=spec.element.max)
    with_rounded = _dot(v, round_magnitude(v, spec.element), x, layout, spec)
    factor = torch.where(with_rounded == 0, 1.0, _dot(v, v, x, layout, spec) / with_rounded)
    grid = spec.fmt.scale_type.minifloat
    corrected = torch.clamp(ideal * factor, max=grid.max)
    scale = materialize(round_magnitude_stochastically(corrected, grid, noise))
    return Scaling(multiplier, scale, scale, dec)


def eden_anchor(spec: QuantSpec) -> float:
    """What rounds a product to the multiples whose sums are exact, where it is added and taken away again."""
    return anchor_of_sums(14, spec)


def _dot(a: Tensor, b: Tensor, x: Tensor, layout: BlockLayout, spec: QuantSpec) -> Tensor:
    """The sum of a * b over each block, of x's elements split into blocks."""
    anchor = eden_anchor(spec)
    return layout.sum(layout.join((rounded_product(a * b) + anchor) - anchor, x.shape))
