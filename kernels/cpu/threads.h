// How many threads a tensor is worth.
#pragma once
#include <omp.h>

#include <cstdint>

static inline int threads_for(int64_t elements, int threads) {
  const int64_t most = elements >> 15;
  return threads <= most ? threads : most < 1 ? 1 : (int)most;
}
