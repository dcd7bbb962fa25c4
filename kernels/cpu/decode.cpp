// The values of packed codes and scales, byte for byte as metis_compile.numerics.decode gives them.
//
// Dimensions as in quantize.cpp: [outer, n, inner], blocks along n, contiguous where inner == 1.
#include <vector>

#include "scales.h"
#include "threads.h"

INLINE I codes_of_line(const uint8_t* codes, int64_t count) {
  if constexpr (!FOUR_BITS) return load_some(codes, count);
  Nibbles nibbles = 0;
  if (__builtin_expect(count >= LANES, 1)) nibbles = read<Nibbles>(codes);
  else copy_few((uint8_t*)&nibbles, codes, (count + 1) / 2);
  return integers_of(nibbles);
}

struct Row {
  const uint8_t* codes;
  bool high;            // the nibble, where a byte holds two rows
  const float* scales;  // of each column, of each block of columns, or one
  bool per_column;
  float tensor;
  void* values;
  int64_t columns;
};

// `count` columns, LANES of them if not fewer.
template <bool exact, bool pack_rows> INLINE void vector(const Row& row, int64_t column, int64_t count, F scale) {
  I code;
  if constexpr (pack_rows) code = (load_some(row.codes + column, count) >> (row.high ? 4 : 0)) & 15;
  else code = codes_of_line(row.codes + (FOUR_BITS ? column / 2 : column), count);
  F value = Element::value(code);
  if constexpr (!exact || BLOCKS != Blocks::tensor) value = value * scale;
  if constexpr (exact) {
    write_some((uint16_t*)row.values + column, bfloat16_of(value), count);
  } else {
    if constexpr (SCALE == ScaleKind::minifloat) value = value * row.tensor;
    write_some((float*)row.values + column, value, count);
  }
}

// Columns [first, last). scale_at(column) -> of the LANES columns from there.
template <bool exact, bool pack_rows, class At>
INLINE void span(const Row& row, int64_t first, int64_t last, const At& scale_at) {
  int64_t column = first;
  for (; column + LANES <= last; column += LANES) vector<exact, pack_rows>(row, column, LANES, scale_at(column));
  if (column < last) vector<exact, pack_rows>(row, column, last - column, scale_at(column));
}

// One row of memory.
template <bool exact, bool pack_rows> void decode_row(Row row) {
  if (row.per_column) {
    span<exact, pack_rows>(row, 0, row.columns, [&](int64_t column) { return load(row.scales + column); });
  } else if constexpr (BLOCKS == Blocks::line || BLOCKS == Blocks::square) {
    const int64_t whole = row.columns / BLOCK;
    const auto scale_at = [&](int64_t column) { return splat(row.scales[column / BLOCK]); };
    for (int64_t b = 0; b < whole; b++) span<exact, pack_rows>(row, b * BLOCK, (b + 1) * BLOCK, scale_at);
    span<exact, pack_rows>(row, whole * BLOCK, row.columns, scale_at);
  } else {
    span<exact, pack_rows>(row, 0, row.columns, [&](int64_t) { return splat(row.scales[0]); });
  }
}

// values_kind: 1 fp32, 2 bfloat16 without the tensor scale. tensor_scale: that of minifloat scales; that of "tensor" lies in scales.
extern "C" void metis_decode(const uint8_t* codes, const void* scales_, const float* tensor_scale, int64_t outer, int64_t n,
                             int64_t inner, int pack_rows, int values_kind, void* values, int threads) {
  const Stored* stored = (const Stored*)scales_;
  const bool line = inner == 1 && BLOCKS != Blocks::square;  // a row of memory runs along the blocks
  const bool by_rows = FOUR_BITS && (BLOCKS == Blocks::square ? pack_rows != 0 : !line);
  const bool per_column = !line && (BLOCKS == Blocks::line || BLOCKS == Blocks::row);
  const int64_t columns = line ? n : inner, rows = line ? outer : outer * n, height = line ? 1 : n;
  const int64_t width = FOUR_BITS && !by_rows ? ceil_div(columns, 2) : columns;  // of a row of codes
  const int64_t size = values_kind == 1 ? sizeof(float) : sizeof(uint16_t);
  const int64_t high = BLOCKS == Blocks::line || BLOCKS == Blocks::square ? BLOCK : height;  // rows under one row of scales
  const int64_t wide = per_column ? columns : BLOCKS == Blocks::line || BLOCKS == Blocks::square ? ceil_div(columns, BLOCK) : 1;
  const float tensor = SCALE == ScaleKind::minifloat ? *tensor_scale : 1.0f;
  threads = threads_for(rows * columns, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> scales(ceil_div(wide, LANES) * LANES);  // those of the row at hand
    int64_t held = -1;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const int64_t o = r / height, i = r % height;
      const int64_t row_of_scales = BLOCKS == Blocks::tensor ? 0 : o * ceil_div(height, high) + i / high;
      if (row_of_scales != held) {
        held = row_of_scales;
        for (int64_t c = 0; c < wide; c += LANES) write(scales.data() + c, read_scales(stored + held * wide + c, wide - c));
      }
      const int64_t row_of_codes = by_rows ? o * ceil_div(n, 2) + i / 2 : r;
      const Row row{codes + row_of_codes * width, by_rows && i % 2 == 1, scales.data(), per_column,
                    tensor, (uint8_t*)values + r * columns * size, columns};
      if (values_kind == 1) by_rows ? decode_row<false, true>(row) : decode_row<false, false>(row);
      else by_rows ? decode_row<true, true>(row) : decode_row<true, false>(row);
    }
  }
}
