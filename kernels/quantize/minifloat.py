"""Rounding to the grid of an element in Triton, and its codes; `numerics/elements.py` is the definition.

MANTISSA and LEAST are the element's bits of mantissa and the exponent of its smallest normal.

A magnitude a lies between multiples of step = 2^(floor(log2 a) - mantissa bits), or of the smallest number. Adding
anchor = 2^23 step rounds it to one, and leaves the number of steps in the sum's mantissa. Everything else is exact.

Nothing here is a product that feeds a sum, except where `tl.fma` says so: a compiler that contracts the two would
round once where the definition rounds twice.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def at_most(value, limit: tl.constexpr):
    """min(value, limit); NaN stays."""
    return tl.minimum(value, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def grid_at(a, MANTISSA: tl.constexpr, LEAST: tl.constexpr):
    """Of fp32 magnitudes: the bits of the power of two at or below, 2^LEAST at the least; step and anchor."""
    lead = tl.maximum(a.to(tl.int32, bitcast=True) & 0x7F800000, (LEAST + 127) << 23)
    anchor = (lead + ((23 - MANTISSA) << 23)).to(tl.float32, bitcast=True)
    step = (lead - (MANTISSA << 23)).to(tl.float32, bitcast=True)
    return lead, anchor, step


@triton.jit
def code_of(total, anchor, lead, MANTISSA: tl.constexpr, LEAST: tl.constexpr):
    """The code of (total - anchor) / step steps above zero."""
    steps = total.to(tl.int32, bitcast=True) - anchor.to(tl.int32, bitcast=True)
    return steps + ((lead - ((LEAST + 127) << 23)) >> (23 - MANTISSA))


@triton.jit
def nearest(a, MANTISSA: tl.constexpr, LEAST: tl.constexpr):
    """(value, code) of fp32 a, not negative and not above the largest number: to nearest, ties to even."""
    lead, anchor, _ = grid_at(a, MANTISSA, LEAST)
    total = a + anchor
    return total - anchor, code_of(total, anchor, lead, MANTISSA, LEAST)


@triton.jit
def upwards(a, MANTISSA: tl.constexpr, LEAST: tl.constexpr):
    """(value, code) of the smallest number that is not below a."""
    lead, anchor, step = grid_at(a, MANTISSA, LEAST)
    total = a + anchor
    value = total - anchor
    below = value < a
    code = code_of(total, anchor, lead, MANTISSA, LEAST)
    return tl.where(below, value + step, value), tl.where(below, code + 1, code)


@triton.jit
def stochastic_code(a, noise, MANTISSA: tl.constexpr, LEAST: tl.constexpr):
    """The code of a rounded up where its distance from the number below, in steps, reaches 1 - noise / 2^24.

    noise: int32 in [0, 2^24). a, in steps times 2^24, is a / step exactly up to what is cut off behind the point, where
    noise has nothing; adding noise carries into the steps exactly where a goes up.
    """
    lead = tl.maximum(a.to(tl.int32, bitcast=True) & 0x7F800000, (LEAST + 127) << 23)
    steps_in_one = ((127 + MANTISSA + 24) << 23) - (lead - (127 << 23))  # the bits of 2^24 / step
    fixed = (a * steps_in_one.to(tl.float32, bitcast=True)).to(tl.int32)
    return ((fixed + noise) >> 24) + ((lead - ((LEAST + 127) << 23)) >> (23 - MANTISSA))


@triton.jit
def nearest_code(a, MANTISSA: tl.constexpr, LEAST: tl.constexpr, LARGEST: tl.constexpr):
    """The code, in the low byte, of fp32 a in [0, LARGEST]: to nearest, ties to even."""
    IS_E2M1: tl.constexpr = MANTISSA == 1 and LEAST == 0 and LARGEST == 6.0
    return nearest_e2m1_code(a) if IS_E2M1 else nearest(a, MANTISSA, LEAST)[1]


@triton.jit
def nearest_e2m1_code(a):
    """The code, in the low byte, of fp32 a in [0, 6]: the line through values and codes, rounded once.

    0 .5 1 1.5 2 | 2 3 4 | 4 6 -> 0 1 2 3 4 | 4 5 6 | 6 7 is concave, so the least of three lines. Each is rounded where
    it is added to 2^23; rounding keeps their order.
    """
    code = tl.minimum(tl.fma(a, 2.0, 8388608.0), a + 8388610.0)
    code = tl.minimum(code, tl.fma(a, 0.5, 8388612.0))
    return code.to(tl.int32, bitcast=True)
