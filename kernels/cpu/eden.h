// Scales that eden rounding corrects; metis_compile/numerics/eden.py is the definition.
#pragma once
#include "noise.h"
#include "scales.h"

// What rounds a product to the multiples whose sums are exact, where it is added and taken away again.
constexpr float PRODUCT_ANCHOR = 1 << (BLOCKS == Blocks::square ? 13 : 9);

INLINE F fixed_product(F a, F b) { return (a * b + PRODUCT_ANCHOR) - PRODUCT_ANCHOR; }

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
  const E4M3::Rounded scale = E4M3::stochastic(at_most(ideal * factor, 448.0f), noise_at(key, position));
  return {multiplier, scale.magnitude, E4M3::signed_code(scale, splat(0.0f))};
}
