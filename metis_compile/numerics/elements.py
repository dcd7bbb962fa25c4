"""Rounding to the grid of an element, such as E2M1 or E4M3, and the codes of elements that torch has no dtype of.

Everything is fp32 arithmetic and comparisons: exact, without tables, and vectorized where Inductor
compiles it (its C++ does not vectorize bit casts).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metis_compile.numerics.number_types import Element

_TWO23 = 2.0**23
_FEW_BINADES = 3  # so few are told apart by comparisons and lines


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


def _anchor(magnitude: Tensor, element: Element) -> Tensor | float:
    """2^23 times the grid's spacing at a, where fp32's own spacing is the grid's: one number for an even grid."""
    if _has_few_binades(element):
        return _anchor_from(element.min_exponent, magnitude, element)
    lead = torch.clamp(_leading_power(magnitude), min=2.0**element.min_exponent)
    return lead * 2.0 ** (23 - element.mantissa_bits)


def _anchor_from(exponent: int, magnitude: Tensor, element: Element) -> Tensor | float:
    """The anchor of magnitudes of at least 2^exponent, binade by binade."""
    here, next_one = 2.0 ** (exponent + 23 - element.mantissa_bits), exponent + 1
    if exponent == element.max_exponent:
        return here
    if next_one == element.max_exponent:
        return torch.where(magnitude < 2.0**next_one, here, 2 * here)
    return torch.where(magnitude < 2.0**next_one, here, _anchor_from(next_one, magnitude, element))


def grid_step(magnitude: Tensor, element: Element) -> Tensor | float:
    """The distance of the grid's values next to fp32 a in [0, element.max], of those above where a is one."""
    return _anchor(magnitude, element) * 2.0**-23


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


def element_codes(value: Tensor, element: Element) -> Tensor:
    """The codes, still fp32, of fp32 values on the element's grid. A NaN gets `element.nan`, or 0 where it has none."""
    magnitude = torch.abs(value)
    if _has_few_binades(element):
        # E2M1: 0 .5 1 1.5 2 | 2 3 4 | 4 6 -> 0 1 2 3 4 | 4 5 6 | 6 7: concave, so the least of the three lines.
        code = _combined(torch.minimum, magnitude, _lines(element))
    else:
        lead = torch.clamp(_leading_power(magnitude), min=2.0**element.min_exponent)
        binade = (lead.view(torch.int32) >> 23) - (127 + element.min_exponent)
        steps = magnitude / (lead * 2.0**-element.mantissa_bits)
        code = steps + (binade << element.mantissa_bits).to(torch.float32)
    if element.signed:
        half = 2.0 ** (element.bits - 2)
        code = code + (half - torch.copysign(torch.full_like(value, half), value))
    return torch.where(value == value, code, float(element.nan or 0))


def element_values(code: Tensor, element: Element) -> Tensor:
    """fp32 values of int32 codes below 2^element.bits."""
    magnitude_code = code & (2**element.magnitude_bits - 1)
    if _has_few_binades(element):
        steps = magnitude_code.to(torch.float32)
        inverted = [(1 / slope, -offset / slope) for slope, offset in _lines(element)]
        value = _combined(torch.maximum, steps, inverted)  # the same lines: convex
    else:
        shift = 23 - element.mantissa_bits
        normal = ((magnitude_code << shift) + ((element.min_exponent + 126) << 23)).view(torch.float32)
        subnormal = magnitude_code.to(torch.float32) * element.least
        value = torch.where(magnitude_code < 2**element.mantissa_bits, subnormal, normal)
    if element.largest_code < 2**element.magnitude_bits - 1:
        value = torch.where(magnitude_code > element.largest_code, torch.nan, value)
        if element.infinity is not None:
            value = torch.where(magnitude_code == element.infinity, torch.inf, value)
    if not element.signed:
        return value
    return torch.where(code > 2**element.magnitude_bits - 1, -value, value)


def _has_few_binades(element: Element) -> bool:
    return 0 <= element.max_exponent - element.min_exponent < _FEW_BINADES


def _lines(element: Element) -> list[tuple[float, float]]:
    """(slope, offset) of the code as a function of the magnitude, in each binade."""
    steps = 2.0 ** (element.mantissa_bits - element.min_exponent)
    binades = range(element.max_exponent - element.min_exponent + 1)
    return [(steps * 2.0**-i, float(i << element.mantissa_bits)) for i in binades]


def _combined(combine: Callable[[Tensor, Tensor], Tensor], x: Tensor, lines: list[tuple[float, float]]) -> Tensor:
    """The least, or the largest, of the lines at x."""
    result: Tensor | None = None
    for slope, offset in lines:
        line = x if slope == 1 else x * slope
        line = line - -offset if offset < 0 else line + offset if offset > 0 else line
        result = line if result is None else combine(result, line)
    assert result is not None
    return result
