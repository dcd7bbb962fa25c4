"""Codes and scales of the blocks of a tile in Triton; `numerics/quantize.py` and its neighbours are the definition."""

from __future__ import annotations

import triton
import triton.language as tl

from metis_compile.kernels.quantize.minifloat import at_most, grid_at, nearest, nearest_code, stochastic_code
from metis_compile.kernels.quantize.scales import (
    e8m0_scales,
    encode_scale,
    ideal_scales,
    multiplier_of,
    power_of_two_below,
    rounded_scales,
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
def block_error(
    scaled,
    scale,
    SELECT: tl.constexpr,
    ANCHOR: tl.constexpr,
    AXIS: tl.constexpr,
    SQUARE: tl.constexpr,
    MANTISSA: tl.constexpr,
    LEAST: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """What rounding blocks changes them by: see numerics/four_over_six.py."""
    magnitude = tl.abs(scaled)
    inside = at_most(magnitude, LARGEST)
    _, anchor, step = grid_at(inside, MANTISSA, LEAST)
    rounded = (inside + anchor) - anchor
    if SELECT == "expected":
        remainder = inside - tl.where(rounded > inside, rounded - step, rounded)
        beyond = magnitude - inside
        error = remainder * (step - remainder) + beyond * beyond
    elif SELECT == "mse":
        error = (magnitude - rounded) * (magnitude - rounded)
    else:
        tl.static_assert(SELECT == "mae", "four-over-six chooses by 'mse', 'mae' or 'expected'")
        error = tl.abs(magnitude - rounded)
    total = over_block((error + ANCHOR) - ANCHOR, True, AXIS, SQUARE) * scale
    return total if SELECT == "mae" else total * scale


@triton.jit
def eden_factor(
    scaled,
    ANCHOR: tl.constexpr,
    AXIS: tl.constexpr,
    SQUARE: tl.constexpr,
    MANTISSA: tl.constexpr,
    LEAST: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """What blocks' ideal scales are corrected by: see numerics/eden.py."""
    v = at_most(tl.abs(scaled), LARGEST)
    with_self = over_block((v * v + ANCHOR) - ANCHOR, True, AXIS, SQUARE)
    with_rounded = over_block((v * nearest(v, MANTISSA, LEAST)[0] + ANCHOR) - ANCHOR, True, AXIS, SQUARE)
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
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,
    LEAST: tl.constexpr,
    LARGEST: tl.constexpr,
    INVERSE_LARGEST: tl.constexpr,
    MAX_EXPONENT: tl.constexpr,
    NAN: tl.constexpr,
    SCALE: tl.constexpr,
    SCALE_MANTISSA: tl.constexpr,
    SCALE_LEAST: tl.constexpr,
    SCALE_LARGEST: tl.constexpr,
    SCALE_NAN: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    ROUNDING: tl.constexpr,
    ROUND_UP: tl.constexpr,
    GUARD_FACTOR: tl.constexpr,
    SELECT: tl.constexpr,
    SUM_ANCHOR: tl.constexpr,
    CARRY: tl.constexpr,
    INSTRUCTION: tl.constexpr,
):
    """(codes as int32, scales as stored) of fp32 x, whose blocks lie along AXIS, and along 1 too if SQUARE.

    noise: of x's shape for stochastic rounding, of the scales' for eden; dimensions that are summed up remain, as 1.
    The constants are those of `constants.constants_of`.
    """
    amax = over_block(tl.abs(x), False, AXIS, SQUARE)
    if SCALE == "minifloat":
        ideal = ideal_scales(amax, enc, INVERSE_LARGEST, GUARD_FACTOR)
        if ROUNDING == "eden":
            multiplier = multiplier_of(ideal, dec)
            factor = eden_factor(x * multiplier, SUM_ANCHOR, AXIS, SQUARE, MANTISSA, LEAST, LARGEST)
            corrected = ideal * factor
            stored = stochastic_code(tl.minimum(corrected, SCALE_LARGEST), noise, SCALE_MANTISSA, SCALE_LEAST)
            stored = tl.where(corrected == corrected, stored, SCALE_NAN)
        else:
            multiplier, scale, stored = rounded_scales(
                ideal, multipliers, ROUND_UP, SCALE_MANTISSA, SCALE_LEAST, SCALE_LARGEST, SCALE_NAN
            )
        if SELECT is not None:
            four_multiplier, four_scale, four_stored = rounded_scales(
                ideal * 1.5, multipliers, ROUND_UP, SCALE_MANTISSA, SCALE_LEAST, SCALE_LARGEST, SCALE_NAN
            )
            error = block_error(
                x * multiplier, scale, SELECT, SUM_ANCHOR, AXIS, SQUARE, MANTISSA, LEAST, LARGEST
            )  # fmt: skip
            four_error = block_error(
                x * four_multiplier, four_scale, SELECT, SUM_ANCHOR, AXIS, SQUARE, MANTISSA, LEAST, LARGEST
            )
            is_four = four_error < tl.where(scale == 0, float("inf"), error)
            multiplier = tl.where(is_four, four_multiplier, multiplier)
            stored = tl.where(is_four, four_stored, stored)
    elif SCALE == "exponent":
        multiplier, stored = e8m0_scales(amax, CARRY, MAX_EXPONENT)
    else:
        tl.static_assert(SCALE == "float32", "SCALE must be 'minifloat', 'exponent' or 'float32'")
        multiplier = encode_scale(amax, LARGEST)
        if POWER_OF_TWO:
            multiplier = power_of_two_below(multiplier)
        stored = tl.div_rn(tl.full(amax.shape, 1.0, tl.float32), multiplier)

    value = x * multiplier
    if INSTRUCTION == "e4m3":
        code = value.to(tl.float8e4nv).to(tl.uint8, bitcast=True).to(tl.int32)
    elif INSTRUCTION == "e5m2":
        code = value.to(tl.float8e5).to(tl.uint8, bitcast=True).to(tl.int32)
    elif NAN is None:
        tl.static_assert(INSTRUCTION is None, "INSTRUCTION must be 'e4m3', 'e5m2' or None")
        # 0 stands for a NaN. Where one element is NaN so is the multiplier, and with it all of the block;
        # and the lesser of NaN and a number is the number.
        a_number = multiplier == multiplier
        magnitude = tl.minimum(tl.abs(value), tl.where(a_number, LARGEST, 0.0))
        if ROUNDING == "stochastic":
            code = stochastic_code(magnitude, noise, MANTISSA, LEAST)
        else:
            code = nearest_code(magnitude, MANTISSA, LEAST, LARGEST)
        code |= (value.to(tl.int32, bitcast=True) >> (32 - BITS)) & tl.where(a_number, 1 << (BITS - 1), 0)
        # Their multiplier is 0 for a block with an infinity, of eden under a held amax, and 0 times that is NaN.
        if SCALE == "float32" or ROUNDING == "eden":
            code = tl.where(value == value, code, 0)
    else:
        tl.static_assert(INSTRUCTION is None, "INSTRUCTION must be 'e4m3', 'e5m2' or None")
        magnitude = tl.minimum(tl.abs(value), LARGEST)
        if ROUNDING == "stochastic":
            code = stochastic_code(magnitude, noise, MANTISSA, LEAST)
        else:
            code = nearest_code(magnitude, MANTISSA, LEAST, LARGEST)
        code |= (value.to(tl.int32, bitcast=True) >> (32 - BITS)) & (1 << (BITS - 1))
    if NAN is not None:
        code = tl.where(value == value, code, NAN)  # a NaN has no sign
    return code, stored
