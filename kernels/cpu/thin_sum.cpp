// out = x + scale left right, with few columns in left: one pass over x, which may be out itself. Sums in float32.
#include "threads.h"
#include "vectors.h"

constexpr int ROWS = 4, VECTORS = 4;  // of a tile, which stays in registers
constexpr int64_t STRIP = 8;          // rows that go over the same columns of right while these are in cache

struct Sum {
  const float* x;
  float* out;
  const float *left, *right;
  int64_t columns, k, down, across, stride;  // left's strides, and that of right's rows
  float scale;
};

// `rows` times 16 `vectors` elements at row r, column c; up to the last column only where `vectors` is 1.
template <int rows, int vectors> INLINE void add_tile(const Sum& s, int64_t r, int64_t c) {
  const int64_t at = r * s.columns + c, count = vectors > 1 ? vectors * LANES : s.columns - c;
  F sum[rows][vectors];
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < vectors; v++)
      sum[i][v] = load_some(s.x + at + i * s.columns + v * LANES, count - v * LANES);
  for (int64_t j = 0; j < s.k; j++) {
    F right[vectors];
    for (int v = 0; v < vectors; v++)
      right[v] = load_some(s.right + j * s.stride + c + v * LANES, count - v * LANES);
    for (int i = 0; i < rows; i++) {
      const F left = splat(s.scale * s.left[(r + i) * s.down + j * s.across]);
      for (int v = 0; v < vectors; v++) sum[i][v] += left * right[v];
    }
  }
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < vectors; v++)
      write_some(s.out + at + i * s.columns + v * LANES, sum[i][v], count - v * LANES);
}

template <int vectors> static void add_columns(const Sum& s, int64_t first, int64_t last, int64_t c) {
  int64_t r = first;
  for (; r + ROWS <= last; r += ROWS) add_tile<ROWS, vectors>(s, r, c);
  for (; r < last; r++) add_tile<1, vectors>(s, r, c);
}

extern "C" void metis_thin_sum(const float* x, float* out, int64_t rows, int64_t columns, const float* left,
                               const float* right, int64_t k, int64_t down, int64_t across, int64_t stride,
                               float scale, int threads) {
  const Sum s = {x, out, left, right, columns, k, down, across, stride, scale};
  threads = threads_for(rows * columns, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t first = 0; first < rows; first += STRIP) {
    const int64_t last = first + STRIP < rows ? first + STRIP : rows;
    int64_t c = 0;
    for (; c + VECTORS * LANES <= columns; c += VECTORS * LANES) add_columns<VECTORS>(s, first, last, c);
    for (; c < columns; c += LANES) add_columns<1>(s, first, last, c);
  }
}
