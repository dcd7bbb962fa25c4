// Scales that eden rounding corrects; metis_compile/numerics/eden.py is the definition.
#pragma once
#include "noise.h"
#include "scales.h"

INLINE F fixed_product(F a, F b) { return (a * b + SUM_ANCHOR) - SUM_ANCHOR; }

// Adds the products of LANES elements with themselves, and with what they are rounded to.
INLINE void add_products(Sums& sums, F x, F multiplier) {
  const F v = at_most((F)magnitude_bits(x * multiplier), ELEMENT_MAX);
  sums.first += fixed_product(v, v);
  sums.second += fixed_product(v, Element::nearest(v).magnitude);
}

// The scales of LANES blocks whose noise is at `position`. sums_of(multipliers, the same) -> Sums of what add_products adds.
template <class Of>
INLINE Scales corrected_scales(I amax_bits, TensorScale tensor, uint64_t key, int64_t position, const Of& sums_of) {
  const F ideal = ideal_scale(amax_bits, tensor), multiplier = multiplier_of(ideal, tensor);
  const Sums sums = sums_of(multiplier, multiplier);
  const F factor = sums.second == 0 ? splat(1.0f) : sums.first / sums.second;
  const ScaleGrid::Rounded scale = ScaleGrid::stochastic(at_most(ideal * factor, SCALE_MAX), noise_at(key, position));
  return {multiplier, scale.magnitude, ScaleGrid::code(scale)};
}
