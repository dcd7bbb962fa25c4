// The values of packed codes and scales, byte for byte as metis_compile.numerics.decode gives them.
//
// Dimensions as in quantize.cpp: [outer, n, inner], blocks along n, contiguous where inner == 1.
#include "scales.h"
#include "threads.h"

// Where the scales of one row of memory lie.
struct ScaleRow {
  const Stored* p;
  bool per_column;
};

INLINE I bytes_from(const uint8_t* p, int64_t count) {
  if (__builtin_expect(count >= LANES, 1)) return integers_of(read<U8>(p));
  uint8_t bytes[LANES] = {};
  memcpy(bytes, p, count);
  return integers_of(read<U8>(bytes));
}

INLINE I codes_of_line(const uint8_t* codes, int64_t count) {
  if constexpr (!FOUR_BITS) return bytes_from(codes, count);
  if (__builtin_expect(count >= LANES, 1)) return integers_of_nibbles(read<Half8>(codes));
  uint8_t bytes[LANES / 2] = {};
  memcpy(bytes, codes, (count + 1) / 2);
  return integers_of_nibbles(read<Half8>(bytes));
}

struct Row {
  const uint8_t* codes;
  bool high;  // the nibble, where a byte holds two rows
  ScaleRow scales;
  float tensor;
  void* values;
  int64_t columns;
};

template <bool exact, bool pack_rows> INLINE void vector(const Row& row, int64_t column, F scale) {
  const int64_t count = row.columns - column;
  I code;
  if constexpr (pack_rows) code = (bytes_from(row.codes + column, count) >> (row.high ? 4 : 0)) & 15;
  else code = codes_of_line(row.codes + (FOUR_BITS ? column / 2 : column), count);
  F value = Element::value(code);
  if constexpr (!exact || BLOCKS != Blocks::tensor) value = value * scale;
  if constexpr (exact) {
    write_some((uint16_t*)row.values + column, bfloat16_of(value), count);
  } else {
    if constexpr (SCALE == ScaleFormat::e4m3) value = value * row.tensor;
    write_some((float*)row.values + column, value, count);
  }
}

// One row of memory.
template <bool exact, bool pack_rows> void decode_row(const Row& row) {
  const int64_t columns = row.columns;
  if (row.scales.per_column) {
    for (int64_t column = 0; column < columns; column += LANES)
      vector<exact, pack_rows>(row, column, read_scales(row.scales.p + column, columns - column));
  } else if constexpr (BLOCKS == Blocks::line || BLOCKS == Blocks::square) {
    const int64_t blocks = ceil_div(columns, BLOCK);
    for (int64_t block = 0; block < blocks; block += LANES) {
      float scales[LANES];
      write(scales, read_scales(row.scales.p + block, blocks - block));
      for (int64_t b = 0; b < LANES; b++) {
        const F scale = splat(scales[b]);
        const int64_t first = (block + b) * BLOCK, last = first + BLOCK < columns ? first + BLOCK : columns;
        for (int64_t column = first; column < last; column += LANES) vector<exact, pack_rows>(row, column, scale);
      }
    }
  } else {
    const F scale = splat(read_scales(row.scales.p, 1)[0]);
    for (int64_t column = 0; column < columns; column += LANES) vector<exact, pack_rows>(row, column, scale);
  }
}

// values_kind: 1 fp32, 2 bfloat16 without the tensor scale. tensor_scale: NVFP4's; that of "tensor" lies in scales.
extern "C" void metis_decode(const uint8_t* codes, const void* scales_, const float* tensor_scale, int64_t outer, int64_t n,
                             int64_t inner, int pack_rows, int values_kind, void* values, int threads) {
  const Stored* scales = (const Stored*)scales_;
  const bool line = inner == 1 && BLOCKS != Blocks::square;  // a row of memory runs along the blocks
  const bool by_rows = FOUR_BITS && (BLOCKS == Blocks::square ? pack_rows != 0 : !line);
  const int64_t columns = line ? n : inner, rows = line ? outer : outer * n, height = line ? 1 : n;
  const float tensor = SCALE == ScaleFormat::e4m3 ? *tensor_scale : 1.0f;
  threads = threads_for(rows * columns, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const int64_t o = r / height, i = r % height;
    ScaleRow scale{scales, false};
    if (BLOCKS == Blocks::line) {
      scale.p = line ? scales + r * ceil_div(columns, BLOCK) : scales + (o * ceil_div(n, BLOCK) + i / BLOCK) * columns;
      scale.per_column = !line;
    } else if (BLOCKS == Blocks::square) {
      scale.p = scales + (o * ceil_div(n, BLOCK) + i / BLOCK) * ceil_div(columns, BLOCK);
    } else if (BLOCKS == Blocks::row) {
      scale.p = line ? scales + r : scales + o * columns;
      scale.per_column = !line;
    }
    const int64_t width = FOUR_BITS && !by_rows ? ceil_div(columns, 2) : columns;
    const int64_t code_row = by_rows ? o * ceil_div(n, 2) + i / 2 : r;
    const int64_t size = values_kind == 1 ? sizeof(float) : sizeof(uint16_t);
    const Row row{codes + code_row * width, by_rows && i % 2 == 1, scale, tensor, (uint8_t*)values + r * columns * size, columns};
    if (values_kind == 1) by_rows ? decode_row<false, true>(row) : decode_row<false, false>(row);
    else by_rows ? decode_row<true, true>(row) : decode_row<true, false>(row);
  }
}
