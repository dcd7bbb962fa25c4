// Rounding to a minifloat's grid and its codes; metis_compile/numerics/elements.py is the definition.
#pragma once
#include "vectors.h"

// Bits are added and taken away as unsigned: those of a NaN overflow, and its code is replaced in the end.
INLINE I sum_of_bits(I a, I b) { return (I)((U)a + (U)b); }
INLINE I difference_of_bits(I a, I b) { return (I)((U)a - (U)b); }

// A minifloat with subnormals: `Element` of metis_compile/numerics/number_types.py. Codes above that of the largest value are
// infinity, if it has a code, and NaN. nan: the code that a NaN gets. -1 stands for a code that there is not.
template <int bits_, bool is_signed, int mantissa_bits, int min_exponent, int largest_code, int infinity, int nan>
struct Minifloat {
  static constexpr int bits = bits_;
  static constexpr int32_t least = (min_exponent + 127) << 23;  // fp32 bits of the smallest normal
  static_assert(bits <= 8 && mantissa_bits > 0 && min_exponent > -127 && min_exponent <= mantissa_bits);

  // The grid around magnitude a: the power of two at or below it, and what has the grid's spacing as fp32's own.
  struct Grid {
    I lead;
    F anchor;
    static INLINE_MEMBER Grid at(F a) {
      const I lead = larger((I)a & EXPONENT, splat(least));
      return {lead, (F)sum_of_bits(lead, splat((23 - mantissa_bits) << 23))};
    }
    INLINE_MEMBER F step() const { return (F)(lead - (mantissa_bits << 23)); }
    // Of a value `steps` grid steps from zero.
    INLINE_MEMBER I code(I steps) const { return sum_of_bits(steps, (lead - least) >> (23 - mantissa_bits)); }
  };

  struct Rounded {
    F magnitude;
    I code;
  };

  static INLINE_MEMBER Rounded nearest(F a) {
    const Grid grid = Grid::at(a);
    const F t = a + grid.anchor;
    return {t - grid.anchor, grid.code(difference_of_bits((I)t, (I)grid.anchor))};
  }

  static INLINE_MEMBER Rounded up(F a) {
    const Grid grid = Grid::at(a);
    const F t = a + grid.anchor, r = t - grid.anchor;
    const I below = r < a;  // -1 where true
    return {r + where(below, grid.step()), grid.code(difference_of_bits((I)t, (I)grid.anchor) - below)};
  }

  static INLINE_MEMBER Rounded stochastic(F a, F noise) {
    const Grid grid = Grid::at(a);
    const F t = a + grid.anchor, r = t - grid.anchor, step = grid.step();
    const I above = r > a;
    const F below = r - where(above, step);
    const I rises = (a - below) >= step * (1 - noise);
    return {below + where(rises, step), grid.code(difference_of_bits((I)t, (I)grid.anchor) + above - rises)};
  }

  // The code of a rounded value that is not negative.
  static INLINE_MEMBER I code(Rounded rounded) {
    const I a_number = rounded.magnitude == rounded.magnitude;
    if constexpr (nan < 0) return rounded.code & a_number;
    else return a_number ? rounded.code : splat(nan);
  }

  // The code of a rounded value, with the sign of `value`. That of a NaN, 0 where there is none, has no sign.
  static INLINE_MEMBER I signed_code(Rounded rounded, F value) {
    static_assert(is_signed);
    const I sign = (I)((U)((I)value & SIGN) >> (32 - bits));
    const I a_number = rounded.magnitude == rounded.magnitude;
    if constexpr (nan < 0) return (rounded.code | sign) & a_number;
    else return a_number ? rounded.code | sign : splat(nan);
  }

  // fp32 values of codes.
  static INLINE_MEMBER F value(I code) {
    constexpr int sign_bit = is_signed ? 1 << (bits - 1) : 0, mask = (1 << (bits - is_signed)) - 1;
    constexpr float smallest = 1.0f / ((int64_t)1 << (mantissa_bits - min_exponent));
    const I m = code & mask;
    const I normal = (m << (23 - mantissa_bits)) + ((min_exponent + 126) << 23);
    const I subnormal = (I)(__builtin_convertvector(m, F) * smallest);
    I magnitude = m < (1 << mantissa_bits) ? subnormal : normal;
    if constexpr (largest_code < mask) magnitude = m > largest_code ? splat(0x7FC00000) : magnitude;
    if constexpr (infinity >= 0) magnitude = m == infinity ? splat(EXPONENT) : magnitude;
    if constexpr (is_signed) magnitude |= (code & sign_bit) << (32 - bits);
    return (F)magnitude;
  }
};
