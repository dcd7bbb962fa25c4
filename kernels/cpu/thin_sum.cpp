// out = x + scale left right + bias, with few columns in left: one pass over x, which may be out itself. Sums in float32.
#include <type_traits>
#include <vector>

#include "threads.h"
#include "vectors.h"

constexpr int ROWS = 4, VECTORS = 4;        // of a tile, which stays in registers
constexpr int64_t STRIP = 32;               // rows that go over the same columns of right while these are in cache
constexpr int64_t PANEL = VECTORS * LANES;  // these columns

template <class Left, class Right> struct Sum {
  const float* x;
  float* out;
  const Left* left;
  const Right* right;
  const float* bias;                               // of each column, or null
  int64_t rows, columns, k, down, across, stride;  // left's strides, and that of right's rows
  float scale;
};

// A strip's rows of scale times left, and a panel's columns of right: where they lie, lines that are used together may
// be a power of two apart and evict each other.
struct Packed {
  std::vector<float> left, right;
};

INLINE float value(float v) { return v; }
INLINE float value(Bfloat16 v) {
  const uint32_t bits = (uint32_t)v.bits << 16;
  return read<float>(&bits);
}

// `rows` rows at r, the r-th of the strip at `place`, and a panel's `count` columns at c.
template <int rows, class S>
INLINE void add_tile(const S& s, const Packed& packed, int64_t r, int64_t place, int64_t c, int64_t count) {
  const int64_t at = r * s.columns + c;
  F sum[rows][VECTORS];
  for (int v = 0; v < VECTORS && v * LANES < count; v++)
    for (int i = 0; i < rows; i++) sum[i][v] = load_some(s.x + at + i * s.columns + v * LANES, count - v * LANES);
  const float *left = packed.left.data() + place * s.k, *right = packed.right.data();
  for (int64_t j = 0; j < s.k; j++)
    for (int v = 0; v < VECTORS; v++) {
      const F vector = load(right + j * PANEL + v * LANES);
      for (int i = 0; i < rows; i++) sum[i][v] += splat(left[i * s.k + j]) * vector;
    }
  for (int v = 0; v < VECTORS && v * LANES < count; v++) {
    const F bias = s.bias == nullptr ? splat(-0.0f) : load_some(s.bias + c + v * LANES, count - v * LANES);
    for (int i = 0; i < rows; i++) write_some(s.out + at + i * s.columns + v * LANES, sum[i][v] + bias, count - v * LANES);
  }
}

template <class S> static void add_strip(const S& s, Packed& packed, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++)
    for (int64_t j = 0; j < s.k; j++)
      packed.left[(r - first) * s.k + j] = s.scale * value(s.left[r * s.down + j * s.across]);
  for (int64_t c = 0; c < s.columns; c += PANEL) {
    const int64_t count = c + PANEL < s.columns ? PANEL : s.columns - c;
    for (int64_t j = 0; j < s.k; j++)
      for (int64_t i = 0; i < count; i += LANES)
        write(packed.right.data() + j * PANEL + i, load_some(s.right + j * s.stride + c + i, count - i));
    int64_t r = first;
    for (; r + ROWS <= last; r += ROWS) add_tile<ROWS>(s, packed, r, r - first, c, count);
    for (; r < last; r++) add_tile<1>(s, packed, r, r - first, c, count);
  }
}

template <class S> static void add(const S& s, int threads) {
  threads = threads_for(s.rows * s.columns, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Packed packed{std::vector<float>(STRIP * s.k), std::vector<float>(PANEL * s.k)};
#pragma omp for schedule(static)
    for (int64_t first = 0; first < s.rows; first += STRIP)
      add_strip(s, packed, first, first + STRIP < s.rows ? first + STRIP : s.rows);
  }
}

// narrow: 1 where left is bfloat16, plus 2 where right is.
extern "C" void metis_thin_sum(const float* x, float* out, int64_t rows, int64_t columns, const void* left,
                               const void* right, const float* bias, int64_t k, int64_t down, int64_t across,
                               int64_t stride, float scale, int narrow, int threads) {
  const auto with = [&](const auto* l, const auto* r) {
    using Left = std::remove_cvref_t<decltype(*l)>;
    using Right = std::remove_cvref_t<decltype(*r)>;
    add(Sum<Left, Right>{x, out, l, r, bias, rows, columns, k, down, across, stride, scale}, threads);
  };
  if (narrow == 0) with((const float*)left, (const float*)right);
  else if (narrow == 1) with((const Bfloat16*)left, (const float*)right);
  else if (narrow == 2) with((const float*)left, (const Bfloat16*)right);
  else with((const Bfloat16*)left, (const Bfloat16*)right);
}
