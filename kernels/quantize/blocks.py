"""Codes and scales of the blocks of a tile in Triton; `numerics/quantize.py` and its neighbours are the definition."""

from __future__ import annotations

import triton
import triton.language as tl

from metis_compile.kernels.quantize.minifloat import at_most, grid_at, nearest, nearest_e2m1_code, stochastic_code
from metis_compile.kernels.quantize.scales import (
    e4m3_scales,
    e8m0_scales,
    encode_scale,
    ideal_e4m3_scales,
    multiplier_of,
    power_of_two_below,
)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def over_block(x, SUM: tl.constexpr, AXIS: tl.constexpr, SQUARE: tl.constexpr):
    """The sum or the maximum (NaN if one is) of each block, with its dimensions kept as 1."""
    if SUM:
        result = tl.sum(x, AXIS, keep_dims=True)
        if SQUARE:
            result = tl.sum(result, 1, keep_dims=True)
    else:
        result = tl.reduce(x, AXIS, larger, keep_dims=True)
        if SQUARE:
            result = tl.reduce(result, 1, larger, keep_dims=True)
    return result


@triton.jit
def block_error(scaled, scale, SELECT: tl.constexpr, AXIS: tl.constexpr, SQUARE: tl.constexpr):
    """What rounding E2M1 blocks changes them by: see numerics/four_over_six.py."""
    magnitude = tl.abs(scaled)
    inside = at_most(magnitude, 6.0)
    _, anchor, step = grid_at(inside, 1, 0)
    rounded = (inside + anchor) - anchor
    if SELECT == "expected":
        remainder = inside - tl.where(rounded > inside, rounded - step, rounded)
        beyond = magnitude - inside
        error = remainder * (step - remainder) + beyond * beyond
    elif SELECT == "mse":
        error = (magnitude - rounded) * (magnitude - rounded)
    else:
        error = tl.abs(magnitude - rounded)
    BITS: tl.constexpr = (18 if SELECT == "mae" else 16) - (4 if SQUARE else 0)
    total = over_block((error + 2.0 ** (23 - BITS)) - 2.0 ** (23 - BITS), True, AXIS, SQUARE) * scale
    return total if SELECT == "mae" else total * scale


@triton.jit
def eden_factor(scaled, AXIS: tl.constexpr, SQUARE: tl.constexpr):
    """What blocks' ideal scales are corrected by: see numerics/eden.py."""
    v = at_most(tl.abs(scaled), 6.0)
    ANCHOR: tl.constexpr = 2.0 ** (13 if SQUARE else 9)
    with_self = over_block((v * v + ANCHOR) - ANCHOR, True, AXIS, SQUARE)
    with_rounded = over_block((v * nearest(v, 1, 0)[0] + ANCHOR) - ANCHOR, True, AXIS, SQUARE)
    return tl.where(with_rounded == 0, 1.0, tl.div_rn(with_self, with_rounded))


@triton.jit
def encode_blocks(
    x,
    noise,
    enc,
    dec,
    multipliers,
    AXIS: tl.constexpr,
    SQUARE: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
    ROUNDING: tl.constexpr,
    GUARD: tl.constexpr,
    SELECT: tl.constexpr,
    CARRY: tl.constexpr,
    HARDWARE_FP8: tl.constexpr,
):
    """(codes as int32, scales as stored) of fp32 x, whose blocks lie along AXIS, and along 1 too if SQUARE.

    noise: of x's shape for stochastic rounding, of the scales' for eden; dimensions that are summed up remain, as 1.
    """
    MANTISSA: tl.constexpr = 1 if ELEMENT == "e2m1" else 3 if ELEMENT == "e4m3" else 2
    LEAST: tl.constexpr = 0 if ELEMENT == "e2m1" else -6 if ELEMENT == "e4m3" else -14
    LARGEST: tl.constexpr = 6.0 if ELEMENT == "e2m1" else 448.0 if ELEMENT == "e4m3" else 57344.0
    MAX_EXPONENT: tl.constexpr = 2 if ELEMENT == "e2m1" else 8 if ELEMENT == "e4m3" else 15

    amax = over_block(tl.abs(x), False, AXIS, SQUARE)
    if SCALE == "e4m3":
        ideal = ideal_e4m3_scales(amax, enc, GUARD)
        if ROUNDING == "eden":
            multiplier = multiplier_of(ideal, dec)
            corrected = ideal * eden_factor(x * multiplier, AXIS, SQUARE)
            stored = stochastic_code(tl.minimum(corrected, 448.0), noise, 3, -6)
            stored = tl.where(corrected == corrected, stored, 0x7F)
        else:
            multiplier, scale, stored = e4m3_scales(ideal, multipliers, GUARD)
        if SELECT is not None:
            four_multiplier, four_scale, four_stored = e4m3_scales(ideal * 1.5, multipliers, GUARD)
            error = block_error(x * multiplier, scale, SELECT, AXIS, SQUARE)
            is_four = block_error(x * four_multiplier, four_scale, SELECT, AXIS, SQUARE) < tl.where(
                scale == 0, float("inf"), error
            )
            multiplier = tl.where(is_four, four_multiplier, multiplier)
            stored = tl.where(is_four, four_stored, stored)
    elif SCALE == "e8m0":
        multiplier, stored = e8m0_scales(amax, CARRY, MAX_EXPONENT)
    else:
        multiplier = encode_scale(amax, LARGEST)
        if SCALE == "power_of_two":
            multiplier = power_of_two_below(multiplier)
        stored = tl.div_rn(tl.full(amax.shape, 1.0, tl.float32), multiplier)

    value = x * multiplier
    if ELEMENT == "e2m1":
        # E2M1 has no NaN: 0 stands for it. Where one element is NaN so is the multiplier, and with it all of the block;
        # and the lesser of NaN and a number is the number.
        a_number = multiplier == multiplier
        magnitude = tl.minimum(tl.abs(value), tl.where(a_number, LARGEST, 0.0))
        if ROUNDING == "stochastic":
            code = stochastic_code(magnitude, noise, MANTISSA, LEAST)
        else:
            code = nearest_e2m1_code(magnitude)
        code |= (value.to(tl.int32, bitcast=True) >> 28) & tl.where(a_number, 8, 0)
    elif HARDWARE_FP8 and ROUNDING == "nearest":
        if ELEMENT == "e4m3":
            code = value.to(tl.float8e4nv).to(tl.uint8, bitcast=True).to(tl.int32)
        else:
            code = value.to(tl.float8e5).to(tl.uint8, bitcast=True).to(tl.int32)
    else:
        magnitude = tl.minimum(tl.abs(value), LARGEST)
        if ROUNDING == "stochastic":
            code = stochastic_code(magnitude, noise, MANTISSA, LEAST)
        else:
            code = nearest(magnitude, MANTISSA, LEAST)[1]
        code |= (value.to(tl.int32, bitcast=True) >> 24) & 0x80
    if ELEMENT != "e2m1":
        code = tl.where(value == value, code, 0x7F)  # a NaN has no sign
    return code, stored
