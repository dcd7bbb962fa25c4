// Scales that four-over-six chooses; metis_compile/numerics/four_over_six.py is the definition.
#pragma once
#include <cmath>

#include "scales.h"

// The errors of LANES elements under one multiplier, in fixed point.
INLINE F error_of(F x, F multiplier) {
  const F magnitude = (F)magnitude_bits(x) * multiplier;
  const F inside = at_most(magnitude, ELEMENT_MAX);
  const Element::Grid grid = Element::Grid::at(inside);
  const F nearest = (inside + grid.anchor) - grid.anchor;
  F error;
  if constexpr (SELECT == Select::expected) {
    // (a - lo)(hi - a): the nearest is lo or hi, and what is on the other side of it is exact.
    const F off = (F)magnitude_bits(inside - nearest), beyond = magnitude - inside;
    error = off * (grid.step() - off) + beyond * beyond;
  } else {
    error = magnitude - nearest;
    error = SELECT == Select::mae ? (F)magnitude_bits(error) : error * error;
  }
  return (error + SUM_ANCHOR) - SUM_ANCHOR;
}

// Of blocks whose largest element becomes 6, and 4.
INLINE void add_errors(Sums& sums, F x, F multiplier_six, F multiplier_four) {
  sums.first += error_of(x, multiplier_six);
  sums.second += error_of(x, multiplier_four);
}

INLINE F weighted(F error, F scale) { return SELECT == Select::mae ? error * scale : (error * scale) * scale; }

// The scales of LANES blocks. sums_of(multipliers of six, of four) -> Sums of what add_errors adds in each block.
template <class Of> INLINE Scales chosen_scales(I amax_bits, TensorScale tensor, const Of& sums_of) {
  const F ideal = ideal_scale(amax_bits, tensor);
  const Scales six = rounded_scale(ideal, tensor), four = rounded_scale(ideal * 1.5f, tensor);
  const Sums errors = sums_of(six.multiplier, four.multiplier);
  const F of_six = six.scale == 0 ? splat(INFINITY) : weighted(errors.first, six.scale);
  const I is_four = weighted(errors.second, four.scale) < of_six;
  return {is_four ? four.multiplier : six.multiplier, is_four ? four.scale : six.scale,
          is_four ? four.stored : six.stored};
}
