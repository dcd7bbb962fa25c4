"""Rounding to the grids of E2M1, E4M3 and E5M2, and the codes of E2M1.

Everything is fp32 arithmetic and comparisons: exact, without tables, and vectorized where Inductor
compiles it (its C++ does not vectorize bit casts).
"""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.numerics.formats import Element

_TWO23 = 2.0**23


def _leading_power(magnitude: Tensor) -> Tensor:
    """2^floor(log2 a) of a = magnitude < 2^100, fp32 (Rump, Ogita, Oishi 2008, Algorithm 3.5); 0 for 0."""
    q = magnitude * (_TWO23 + 1)
    return torch.abs(q - rounded_product(q * (1 - 2.0**-24)))


def rounded_product(product: Tensor) -> Tensor:
    """A product that is not negative, rounded before it is added to anything.

    It must not become a part of an fma, which rounds once; compilers for GPUs make these where a product feeds a sum,
    and a magnitude in between keeps them from it.
    """
    return torch.abs(product)


def _anchor(magnitude: Tensor, element: Element) -> Tensor:
    """2^23 times the grid's spacing at a: where fp32's own spacing is the grid's."""
    if element.name == "e2m1":
        return torch.where(magnitude < 2, 2.0**22, torch.where(magnitude < 4, 2.0**23, 2.0**24))
    lead = torch.clamp(_leading_power(magnitude), min=2.0**element.min_exponent)
    return lead * 2.0 ** (23 - element.mantissa_bits)


def round_magnitude(magnitude: Tensor, element: Element) -> Tensor:
    """Round fp32 a in [0, element.max] to the nearest grid value, ties to even. NaN stays NaN."""
    anchor = _anchor(magnitude, element)
    return (magnitude + anchor) - anchor


def round_magnitude_up(magnitude: Tensor, element: Element) -> Tensor:
    """The smallest grid value that is not below fp32 a in [0, element.max]. NaN stays NaN."""
    anchor = _anchor(magnitude, element)
    nearest = (magnitude + anchor) - anchor
    return torch.where(nearest < magnitude, nearest + anchor * 2.0**-23, nearest)


def round_magnitude_stochastically(magnitude: Tensor, element: Element, noise: Tensor) -> Tensor:
    """Round fp32 a in [0, element.max] up where frac(a / step) + noise >= 1, else down; NaN stays NaN. All exact."""
    anchor = _anchor(magnitude, element)
    step = anchor * 2.0**-23
    nearest = (magnitude + anchor) - anchor
    below = torch.where(nearest > magnitude, nearest - step, nearest)
    # frac >= 1 - u rather than frac + u >= 1: u is a multiple of 2^-24, and the sum would round.
    return torch.where(magnitude - below >= step * (1 - noise), below + step, below)


def expected_square_error(value: Tensor, element: Element) -> Tensor:
    """The mean square of what rounding fp32 values stochastically changes them by; past the grid it is clipping."""
    magnitude = torch.abs(value)
    inside = torch.clamp(magnitude, max=element.max)
    anchor = _anchor(inside, element)
    step = anchor * 2.0**-23
    nearest = (inside + anchor) - anchor
    remainder = inside - torch.where(nearest > inside, nearest - step, nearest)
    beyond = magnitude - inside
    return rounded_product(remainder * (step - remainder)) + rounded_product(beyond * beyond)


def round_to_element(value: Tensor, element: Element, noise: Tensor | None = None) -> Tensor:
    """Saturate fp32 values and round them to the element's grid, as fp32.

    To nearest, ties to even; with ``noise`` (fp32, uniform in [0, 1)), stochastically: a magnitude goes up
    with the probability of its distance from the grid value below. A zero keeps its sign; NaN stays NaN.
    """
    magnitude = torch.clamp(torch.abs(value), max=element.max)
    if noise is None:
        rounded = round_magnitude(magnitude, element)
    else:
        rounded = round_magnitude_stochastically(magnitude, element, noise)
    return torch.copysign(rounded, value)


def e2m1_codes(value: Tensor) -> Tensor:
    """The 4-bit codes, still fp32, of fp32 values on the E2M1 grid. NaN, which E2M1 lacks, becomes 0."""
    a = torch.abs(value)
    # 0 .5 1 1.5 2 | 2 3 4 | 4 6 -> 0 1 2 3 4 | 4 5 6 | 6 7: concave, so the least of the three lines.
    code = torch.minimum(torch.minimum(a * 2, a + 2), a * 0.5 + 4)
    sign = 4 - torch.copysign(torch.full_like(value, 4.0), value)
    return torch.where(value == value, code + sign, 0.0)


def e2m1_values(code: Tensor) -> Tensor:
    """fp32 values of int32 E2M1 codes in 0..15."""
    m = (code & 7).to(torch.float32)
    a = torch.maximum(torch.maximum(m * 0.5, m - 2), m * 2 - 8)  # the same lines, inverted: convex
    return torch.where(code > 7, -a, a)
