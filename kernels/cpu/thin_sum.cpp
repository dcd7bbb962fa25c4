// out = x + scale left right + bias, with few columns in left: one pass over x, which may be out itself, or null for
// zeros. Sums in float32.
#include <vector>

#include "threads.h"
#include "vectors.h"

constexpr int ROWS = 4, VECTORS = LANES / 4;  // of a tile, which stays in registers: AVX-512 has 32, AVX2 16
constexpr int64_t STRIP = 32;                 // rows that go over the same columns of right while these are in cache
constexpr int64_t PANEL = VECTORS * LANES;    // these columns

struct Sum {
  const float* x;
  float* out;
  const void *left, *right;
  const float* bias;                               // of each column, or null
  int64_t rows, columns, k, down, across, stride;  // left's strides, and that of right's rows
  float scale;
  bool left_narrow, right_narrow;  // bfloat16, else float
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
template <int rows>
INLINE void add_tile(const Sum& s, const Packed& packed, int64_t r, int64_t place, int64_t c, int64_t count) {
  const int64_t at = r * s.columns + c;
  F sum[rows][VECTORS] = {};  // those past the last column are added to and not written
  for (int v = 0; v < VECTORS && v * LANES < count; v++)
    for (int i = 0; i < rows; i++)
      sum[i][v] = s.x == nullptr ? splat(0.0f) : load_some(s.x + at + i * s.columns + v * LANES, count - v * LANES);
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

template <class Left> static void pack_left(const Sum& s, float* packed, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++)
    for (int64_t j = 0; j < s.k; j++)
      packed[(r - first) * s.k + j] = s.scale * value(((const Left*)s.left)[r * s.down + j * s.across]);
}

template <class Right> static void pack_right(const Sum& s, float* packed, int64_t c, int64_t count) {
  for (int64_t j = 0; j < s.k; j++)
    for (int64_t i = 0; i < count; i += LANES)
      write(packed + j * PANEL + i, load_some((const Right*)s.right + j * s.stride + c + i, count - i));
}

static void add_strip(const Sum& s, Packed& packed, int64_t first, int64_t last) {
  (s.left_narrow ? pack_left<Bfloat16> : pack_left<float>)(s, packed.left.data(), first, last);
  for (int64_t c = 0; c < s.columns; c += PANEL) {
    const int64_t count = c + PANEL < s.columns ? PANEL : s.columns - c;
    (s.right_narrow ? pack_right<Bfloat16> : pack_right<float>)(s, packed.right.data(), c, count);
    int64_t r = first;
    for (; r + ROWS <= last; r += ROWS) add_tile<ROWS>(s, packed, r, r - first, c, count);
    for (; r < last; r++) add_tile<1>(s, packed, r, r - first, c, count);
  }
}

// narrow: 1 where left is bfloat16, plus 2 where right is.
extern "C" void metis_thin_sum(const float* x, float* out, int64_t rows, int64_t columns, const void* left,
                               const void* right, const float* bias, int64_t k, int64_t down, int64_t across,
                               int64_t stride, float scale, int narrow, int threads) {
  const Sum s = {x, out, left, right, bias, rows, columns, k, down, across, stride, scale, (narrow & 1) != 0, narrow > 1};
  threads = threads_for(rows * columns, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Packed packed{std::vector<float>(STRIP * k), std::vector<float>(PANEL * k)};
#pragma omp for schedule(static)
    for (int64_t first = 0; first < rows; first += STRIP)
      add_strip(s, packed, first, first + STRIP < rows ? first + STRIP : rows);
  }
}
