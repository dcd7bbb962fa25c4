// Uniform noise from a key and a position; metis_compile/numerics/noise.py is the definition.
#pragma once
#include "vectors.h"

INLINE U mix(U x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

// fp32 in [0, 1) of LANES consecutive row-major positions.
INLINE F noise_at(uint64_t key, uint64_t position) {
  const uint32_t low = (uint32_t)position, high = (uint32_t)(position >> 32);
  U bits = mix((lane_numbers() + low) ^ (uint32_t)key) + ((uint32_t)(key >> 32) + high * 0x85EBCA6Bu);
  if (__builtin_expect(low > UINT32_MAX - LANES, 0))  // a lane that wraps around is 2^32 further
    bits += (U)(lane_numbers() + low < low) & 0x85EBCA6Bu;
  return __builtin_convertvector((I)(mix(bits) >> 8), F) * 0x1p-24f;
}
