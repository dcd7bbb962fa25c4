// The scales of blocks, from their largest magnitudes and, where it takes more, from sums over their elements.
#pragma once
#include "eden.h"
#include "four_over_six.h"

constexpr bool EDEN = ROUNDING == Rounding::eden;

// Adds LANES elements of blocks to what block_scales asks for.
INLINE void add_elements(Sums& sums, F x, F multiplier, F other_multiplier) {
  if constexpr (EDEN) add_products(sums, x, multiplier);
  else add_errors(sums, x, multiplier, other_multiplier);
}

// The scales of LANES blocks that are stored from `position` on. sums_of(multipliers, other multipliers) -> Sums: of each
// block, what add_elements makes of its elements.
template <class Of>
INLINE Scales block_scales(I amax_bits, TensorScale tensor, uint64_t key, int64_t position, const Of& sums_of) {
  if constexpr (EDEN) return corrected_scales(amax_bits, tensor, key, position, sums_of);
  else if constexpr (SELECT != Select::none) return chosen_scales(amax_bits, tensor, sums_of);
  else return scales_of(amax_bits, tensor);
}
