// The values of packed codes and scales, byte for byte as metis_compile.numerics.decode gives them.
//
// Dimensions as in quantize.cpp: [outer, n, inner], blocks along n, contiguous where inner == 1.
#include "scales.h"
#include "threads.h"

// Where the scales of one row of memory lie.
struct ScaleRow {
  const Stored* p;
  int64_t columns;
  bool per_column;

  INLINE_MEMBER F at(int64_t column) const {
    if (per_column) return read_scales(p + column, columns - column);
    return splat(read_scales(p + (BLOCKS == Blocks::line || BLOCKS == Blocks::square ? column / BLOCK : 0), 1)[0]);
  }
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

// One row of memory, of `columns` elements.
template <bool exact, bool pack_rows>
void row(const uint8_t* codes, const ScaleRow& scales, bool high, float tensor, void* values, int64_t columns) {
  for (int64_t column = 0; column < columns; column += LANES) {
    const int64_t count = columns - column;
    I code;
    if constexpr (pack_rows) {
      code = (bytes_from(codes + column, count) >> (high ? 4 : 0)) & 15;
    } else {
      code = codes_of_line(codes + (FOUR_BITS ? column / 2 : column), count);
    }
    F value = Element::value(code);
    if constexpr (!exact || BLOCKS != Blocks::tensor) value = value * scales.at(column);
    if constexpr (exact) {
      write_some((uint16_t*)values + column, bfloat16_of(value), count);
    } else {
      if constexpr (SCALE == ScaleFormat::e4m3) value = value * tensor;
      write_some((float*)values + column, value, count);
    }
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
    ScaleRow scale{scales, columns, false};
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
    const uint8_t* c = codes + code_row * width;
    if (values_kind == 1) {
      float* v = (float*)values + r * columns;
      by_rows ? row<false, true>(c, scale, i & 1, tensor, v, columns) : row<false, false>(c, scale, false, tensor, v, columns);
    } else {
      uint16_t* v = (uint16_t*)values + r * columns;
      by_rows ? row<true, true>(c, scale, i & 1, tensor, v, columns) : row<true, false>(c, scale, false, tensor, v, columns);
    }
  }
}
