// What puts a largest magnitude at a target; metis_compile/numerics/scales.py is the definition.
#pragma once
#include <cfloat>

#include "vectors.h"

INLINE F encode_scale(F amax, float target) {
  return amax == 0 ? splat(1.0f) : at_most(splat(target) / amax, FLT_MAX);
}

INLINE I magnitude_bits(F v) { return (I)v & MAGNITUDE; }

// The bits of the largest magnitude of consecutive elements: as integers, NaN is above infinity.
template <class T> INLINE int32_t amax_of(const T* x, int64_t count) {
  I m[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES)
    for (int k = 0; k < 4; k++) m[k] = larger(m[k], magnitude_bits(load(x + i + k * LANES)));
  for (; i < count; i += LANES) m[0] = larger(m[0], magnitude_bits(load_some(x + i, count - i)));
  return largest(larger(larger(m[0], m[1]), larger(m[2], m[3])));
}
