// One fp32 scale for a whole tensor: enc = target / amax and dec = 1 / enc, as metis_compile.numerics.scales has them.
#include "encode_scale.h"
#include "threads.h"

using Input = METIS_INPUT;

extern "C" void metis_tensor_scale(const void* x, int64_t numel, float target, float* enc, float* dec, int threads) {
  threads = threads_for(numel, threads);
  int32_t amax = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(max : amax)
  {
    const int64_t t = omp_get_thread_num(), of = omp_get_num_threads();
    const int64_t first = numel * t / of, last = numel * (t + 1) / of;
    amax = amax_of((const Input*)x + first, last - first);
  }
  const F e = encode_scale((F)splat(amax), target);
  *enc = e[0];
  *dec = 1.0f / e[0];
}
