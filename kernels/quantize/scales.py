"""Block scales in Triton, from the largest magnitude of each block; `numerics/scales.py` is the definition."""

from __future__ import annotations

import triton
import triton.language as tl

from metis_compile.kernels.quantize.minifloat import at_most, nearest, upwards

FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)


@triton.jit
def encode_scale(amax, TARGET: tl.constexpr):
    """What puts fp32 `amax` at TARGET, 1 where it is 0."""
    enc = at_most(tl.div_rn(tl.full(amax.shape, TARGET, tl.float32), amax), FLOAT32_MAX)
    return tl.where(amax == 0.0, 1.0, enc)


@triton.jit
def power_of_two_below(enc):
    """2^floor(log2 enc) of normal fp32 enc; NaN stays."""
    power = (enc.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.where(enc == enc, power, enc)


@triton.jit
def ideal_scales(amax, enc, INVERSE_LARGEST: tl.constexpr, GUARD_FACTOR: tl.constexpr):
    """Minifloat block scales before they are rounded. enc: the tensor's. INVERSE_LARGEST: of the elements."""
    ideal = amax * (enc * INVERSE_LARGEST)
    if GUARD_FACTOR != 1.0:
        ideal = ideal * GUARD_FACTOR
    return ideal


@triton.jit
def multiplier_of(scale, dec):
    """What elements are multiplied by under fp32 block scales, finite where one is 0. dec: the tensor's."""
    product = scale * dec
    return at_most(tl.div_rn(tl.full(product.shape, 1.0, tl.float32), product), FLOAT32_MAX)


@triton.jit
def scale_multipliers(
    dec, COUNT: tl.constexpr, MANTISSA: tl.constexpr, LEAST: tl.constexpr, LARGEST_CODE: tl.constexpr
):  # fmt: skip
    """[COUNT] fp32: what elements are multiplied by under each minifloat scale, by its byte. dec: the tensor's.

    There are fewer scales than blocks in a tile, and a division takes longer than a look-up.
    """
    byte = tl.arange(0, COUNT)
    normal = ((byte << (23 - MANTISSA)) + ((LEAST + 126) << 23)).to(tl.float32, bitcast=True)
    SMALLEST: tl.constexpr = 2.0 ** (LEAST - MANTISSA)
    scale = tl.where(byte < (1 << MANTISSA), byte.to(tl.float32) * SMALLEST, normal)
    return multiplier_of(tl.where(byte > LARGEST_CODE, float("nan"), scale), dec)


@triton.jit
def rounded_scales(
    ideal,
    multipliers,
    ROUND_UP: tl.constexpr,
    MANTISSA: tl.constexpr,
    LEAST: tl.constexpr,
    LARGEST: tl.constexpr,
    NAN: tl.constexpr,
):
    """(multiplier, scale, byte) of ideal block scales."""
    if ROUND_UP:
        scale, code = upwards(at_most(ideal, LARGEST), MANTISSA, LEAST)
    else:
        scale, code = nearest(at_most(ideal, LARGEST), MANTISSA, LEAST)
    byte = tl.where(scale == scale, code, NAN)
    multiplier = tl.reshape(tl.gather(multipliers, tl.reshape(byte, (byte.numel,)), 0), byte.shape)
    return multiplier, scale, byte


@triton.jit
def e8m0_scales(amax, CARRY: tl.constexpr, MAX_EXPONENT: tl.constexpr):
    """(multiplier, byte). CARRY: what is added to the bits of an amax before its exponent is taken."""
    byte = tl.maximum(((amax.to(tl.int32, bitcast=True) + CARRY) >> 23) - MAX_EXPONENT, 0)
    byte = tl.where(amax <= FLOAT32_MAX, byte, 255)
    inverse = ((254 - byte) << 23).to(tl.float32, bitcast=True)
    return tl.where(byte == 255, float("nan"), inverse), byte
