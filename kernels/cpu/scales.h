// Block scales from the largest magnitude of each block; metis_compile/numerics/scales.py is the definition.
#pragma once
#include "encode_scale.h"
#include "spec.h"

constexpr int E8M0_NAN = 255;

// The scale of the whole tensor, where the format has one.
struct TensorScale {
  float enc;
  float dec;
};

struct Scales {
  F multiplier;  // an element is rounded after multiplying by this
  F scale;       // a rounded element is multiplied by this (under minifloat scales: and by dec)
  I stored;      // the byte of a minifloat or an exponent
};

// Two sums over each of LANES blocks.
struct Sums {
  F first;
  F second;
};

INLINE F e8m0_value(I byte) {
  const I bits = larger(byte << 23, splat(1 << 22));
  return (F)(byte == E8M0_NAN ? splat(0x7FC00000) : bits);
}

// Minifloat scales: before they are rounded.
INLINE F ideal_scale(I amax_bits, TensorScale tensor) {
  const F ideal = (F)amax_bits * (tensor.enc * INVERSE_ELEMENT_MAX);
  return GUARD_FACTOR != 1 ? ideal * GUARD_FACTOR : ideal;
}

// Minifloat scales: what elements are multiplied by before rounding.
INLINE F multiplier_of(F scale, TensorScale tensor) { return at_most(1.0f / (scale * tensor.dec), FLT_MAX); }

INLINE Scales rounded_scale(F ideal, TensorScale tensor) {
  ideal = at_most(ideal, SCALE_MAX);
  const ScaleGrid::Rounded scale = ROUND_UP ? ScaleGrid::up(ideal) : ScaleGrid::nearest(ideal);
  return {multiplier_of(scale.magnitude, tensor), scale.magnitude, ScaleGrid::code(scale)};
}

INLINE Scales scales_of(I amax_bits, TensorScale tensor) {
  const F amax = (F)amax_bits;
  if constexpr (SCALE == ScaleKind::minifloat) {
    return rounded_scale(ideal_scale(amax_bits, tensor), tensor);
  } else if constexpr (SCALE == ScaleKind::exponent) {
    I byte = (I)(((U)amax_bits + (uint32_t)E8M0_CARRY) >> 23) - MAX_EXPONENT;
    byte = amax_bits >= EXPONENT ? splat(E8M0_NAN) : larger(byte, I{});
    const I inverse = byte == E8M0_NAN ? splat(0x7FC00000) : (254 - byte) << 23;
    return {(F)inverse, e8m0_value(byte), byte};
  } else if constexpr (BLOCKS == Blocks::tensor) {
    return {splat(tensor.enc), splat(tensor.dec), I{}};
  } else {
    F enc = encode_scale(amax, ELEMENT_MAX);
    if constexpr (POWER_OF_TWO) enc = enc == enc ? (F)((I)enc & EXPONENT) : enc;
    return {enc, 1.0f / enc, I{}};
  }
}

// Stores the first `count` lanes.
INLINE void write_scales(Stored* p, const Scales& scales, int64_t count) {
  if constexpr (SCALE == ScaleKind::float32) write_some(p, scales.scale, count);
  else write_some(p, bytes_of(scales.stored), count);
}

INLINE F scale_value(F stored) { return stored; }
INLINE F scale_value(I stored) { return SCALE == ScaleKind::minifloat ? ScaleGrid::value(stored) : e8m0_value(stored); }

// fp32 values of `count` stored scales, LANES at most.
INLINE F read_scales(const Stored* p, int64_t count) { return scale_value(load_some(p, count)); }
