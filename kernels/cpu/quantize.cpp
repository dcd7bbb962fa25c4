// Quantizes a dense tensor in blocks, byte for byte as metis_compile.numerics.encode and fake_quantize do.
//
// The tensor is [outer, n, inner], the blocked axis n; with inner == 1 blocks lie along contiguous memory. 2-D blocks
// tile [n, inner], and `pack_rows` says which of the two axes E2M1 codes are packed along. Work is cut into units:
// a row, a row of blocks, or a strip of columns. A unit reads its elements once for the blocks' largest magnitudes
// and again, from cache, to round them.
#include "block_scales.h"
#include "threads.h"

enum Values { none, full, exact };  // fp32; or without the tensor scale, which bfloat16 holds exactly

struct Job {
  const Input* x;
  int64_t outer, n, inner;
  bool pack_rows;
  void* values;
  uint8_t* codes;
  Stored* scales;
  uint64_t key;
  TensorScale tensor;
};

constexpr int64_t GROUP = LANES * BLOCK;      // columns that one vector of block scales covers
constexpr int64_t FLAT_UNIT = 1 << 14;        // elements of a unit where there is one block

// Rounds LANES elements at a row-major position, writes their values at that position, returns their codes.
template <Values V, bool C> INLINE I element(const Job& job, F x, F multiplier, F scale, int64_t position, int64_t count) {
  const F value = x * multiplier;
  const F magnitude = at_most((F)magnitude_bits(value), ELEMENT_MAX);
  typename Element::Rounded rounded;
  if constexpr (ROUNDING == Rounding::stochastic) rounded = Element::stochastic(magnitude, noise_at(job.key, position));
  else rounded = Element::nearest(magnitude);
  if constexpr (V != none) {
    F result = (F)((I)rounded.magnitude | ((I)value & SIGN));
    if constexpr (V == full || BLOCKS != Blocks::tensor) result = result * scale;
    if constexpr (V == full) {
      if constexpr (SCALE == ScaleKind::minifloat) result = result * job.tensor.dec;
      write_some((float*)job.values + position, result, count);
    } else {
      write_some((uint16_t*)job.values + position, bfloat16_of(result), count);
    }
  }
  return C ? Element::signed_code(rounded, value) : I{};
}

// Writes `count` codes that lie along the packed axis, or are not packed.
INLINE void write_line(uint8_t* codes, I code, int64_t count) {
  if constexpr (FOUR_BITS) {
    const Nibbles nibbles = nibbles_of(code);
    if (__builtin_expect(count >= LANES, 1)) return write(codes, nibbles);
    copy_few(codes, (const uint8_t*)&nibbles, (count + 1) / 2);
  } else {
    write_some(codes, bytes_of(code), count);
  }
}

// LANES blocks of a contiguous row from column `first` on, all of them whole or not.
template <Values V, bool C, bool whole> INLINE void group_of_row(const Job& job, int64_t row, int64_t first) {
  const int64_t columns = job.n, start = row * columns, blocks = ceil_div(columns, BLOCK), block = first / BLOCK;
  const auto at = [&](int64_t column) __attribute__((always_inline)) {
    return whole ? load(job.x + start + column) : load_some(job.x + start + column, columns - column);
  };
  I largest_lanes[LANES];
  for (int64_t b = 0; b < LANES; b++) {
    I m = I{};
    for (int64_t i = 0; i < BLOCK; i += LANES)
      if (const int64_t column = first + b * BLOCK + i; whole || column < columns) m = larger(m, magnitude_bits(at(column)));
    largest_lanes[b] = m;
  }
  const auto sums_of = [&](F multiplier, F other) __attribute__((always_inline)) {
    float multipliers[LANES], others[LANES];
    write(multipliers, multiplier);
    write(others, other);
    F firsts[LANES], seconds[LANES];
    for (int64_t b = 0; b < LANES; b++) {
      Sums sums = {};
      for (int64_t i = 0; i < BLOCK; i += LANES)
        if (const int64_t column = first + b * BLOCK + i; whole || column < columns)
          add_elements(sums, at(column), splat(multipliers[b]), splat(others[b]));
      firsts[b] = sums.first;
      seconds[b] = sums.second;
    }
    return Sums{sum_of_each(firsts), sum_of_each(seconds)};
  };
  const I amax_bits = largest_of_each(largest_lanes);
  const Scales scales = block_scales(amax_bits, job.tensor, job.key, row * blocks + block, sums_of);
  if constexpr (C) write_scales(job.scales + row * blocks + block, scales, whole ? LANES : blocks - block);
  float multipliers[LANES], scale_values[LANES];
  write(multipliers, scales.multiplier);
  write(scale_values, scales.scale);
  uint8_t* codes = job.codes + row * (FOUR_BITS ? ceil_div(columns, 2) : columns);
  for (int64_t b = 0; b < LANES; b++) {
    const F multiplier = splat(multipliers[b]), scale = splat(scale_values[b]);
    for (int64_t i = 0; i < BLOCK; i += LANES)
      if (const int64_t column = first + b * BLOCK + i; whole || column < columns) {
        const int64_t count = whole ? LANES : columns - column;
        const I code = element<V, C>(job, at(column), multiplier, scale, start + column, count);
        if constexpr (C) write_line(codes + (FOUR_BITS ? column / 2 : column), code, count);
      }
  }
}

// Blocks along a contiguous row.
template <Values V, bool C> void line_of_row(Job job, int64_t row) {
  int64_t first = 0;
  for (; first + GROUP <= job.n; first += GROUP) group_of_row<V, C, true>(job, row, first);
  if (first < job.n) group_of_row<V, C, false>(job, row, first);
}

// Rows [top, bottom) of matrix `o`, a cache line of columns from `column`, whole or not: a block per column.
template <Values V, bool C, bool whole>
INLINE void strip(const Job& job, int64_t o, int64_t top, int64_t bottom, int64_t column, int64_t block, int64_t blocks) {
  constexpr int vectors = CACHE_LINE / LANES;
  const int64_t inner = job.inner, start = o * job.n * inner + column;
  const auto count = [&](int v) __attribute__((always_inline)) { return whole ? LANES : inner - column - v * LANES; };
  const auto elements = [&](int64_t r, int v) __attribute__((always_inline)) {
    return load_some(job.x + start + r * inner + v * LANES, count(v));
  };
  // Far-apart rows evict each other from the cache; registers and the stack do not.
  constexpr bool kept = BLOCKS == Blocks::line && BLOCK <= 32;
  F rows[kept ? BLOCK : 1][vectors];
  const auto at = [&](int64_t r, int v) __attribute__((always_inline)) { return kept ? rows[r - top][v] : elements(r, v); };
  const int64_t stored = (o * blocks + block) * inner + column;
  Scales scales[vectors];

  const auto round = [&](int64_t height) __attribute__((always_inline)) {
    I m[vectors] = {};
    for (int64_t r = 0; r < height; r++)
      for (int v = 0; v < vectors; v++) {
        const F x = elements(top + r, v);
        if constexpr (kept) rows[r][v] = x;
        m[v] = larger(m[v], magnitude_bits(x));
      }
    for (int v = 0; v < vectors; v++) {
      const auto sums_of = [&](F multiplier, F other) __attribute__((always_inline)) {
        Sums sums = {};
        for (int64_t r = 0; r < height; r++) add_elements(sums, at(top + r, v), multiplier, other);
        return sums;
      };
      scales[v] = block_scales(m[v], job.tensor, job.key, stored + v * LANES, sums_of);
      if constexpr (C) write_scales(job.scales + stored + v * LANES, scales[v], count(v));
    }
    constexpr int64_t pair = C && FOUR_BITS ? 2 : 1;
    for (int64_t r = top; r < top + height; r += pair)
      for (int v = 0; v < vectors; v++) {
        const auto code_of = [&](int64_t r) __attribute__((always_inline)) {
          const int64_t position = start + r * inner + v * LANES;
          return element<V, C>(job, at(r, v), scales[v].multiplier, scales[v].scale, position, count(v));
        };
        I code = code_of(r);
        if (pair == 2 && r + 1 < top + height) code |= code_of(r + 1) << 4;
        const int64_t row = pair == 2 ? o * ceil_div(job.n, 2) + r / 2 : o * job.n + r;
        if constexpr (C) write_some(job.codes + row * inner + column + v * LANES, bytes_of(code), count(v));
      }
  };
  if (whole && kept && bottom - top == BLOCK) round(BLOCK);
  else round(bottom - top);
}

template <Values V, bool C>
void strip(Job job, int64_t o, int64_t top, int64_t bottom, int64_t column, int64_t block, int64_t blocks) {
  if (column + CACHE_LINE <= job.inner) strip<V, C, true>(job, o, top, bottom, column, block, blocks);
  else strip<V, C, false>(job, o, top, bottom, column, block, blocks);
}

// A row of square blocks, rows [top, bottom) of matrix `o`.
template <Values V, bool C> void squares(Job job, int64_t o, int64_t top, int64_t bottom) {
  const int64_t columns = job.inner, blocks = ceil_div(columns, BLOCK), start = o * job.n * columns;
  const int64_t stored = (o * ceil_div(job.n, BLOCK) + top / BLOCK) * blocks;
  for (int64_t first = 0; first < columns; first += GROUP) {
    const int64_t last = first + GROUP < columns ? first + GROUP : columns;
    I largest_lanes[LANES] = {};
    for (int64_t r = top; r < bottom; r++) {
      const Input* x = job.x + start + r * columns;
      for (int64_t c = first; c < last; c += LANES) {
        I& m = largest_lanes[(c - first) / BLOCK];
        m = larger(m, magnitude_bits(load_some(x + c, columns - c)));
      }
    }
    const auto sums_of = [&](F multiplier, F other) __attribute__((always_inline)) {
      float multipliers[LANES], others[LANES];
      write(multipliers, multiplier);
      write(others, other);
      F firsts[LANES] = {}, seconds[LANES] = {};
      for (int64_t r = top; r < bottom; r++) {
        const Input* x = job.x + start + r * columns;
        for (int64_t c = first; c < last; c += LANES) {
          const int64_t b = (c - first) / BLOCK;
          Sums sums = {firsts[b], seconds[b]};
          add_elements(sums, load_some(x + c, columns - c), splat(multipliers[b]), splat(others[b]));
          firsts[b] = sums.first;
          seconds[b] = sums.second;
        }
      }
      return Sums{sum_of_each(firsts), sum_of_each(seconds)};
    };
    const int64_t block = first / BLOCK;
    const Scales s = block_scales(largest_of_each(largest_lanes), job.tensor, job.key, stored + block, sums_of);
    if constexpr (C) write_scales(job.scales + stored + block, s, blocks - block);
    float multipliers[LANES], scale_values[LANES];
    write(multipliers, s.multiplier);
    write(scale_values, s.scale);
    const auto codes_at = [&](int64_t r, int64_t c) __attribute__((always_inline)) {
      const int64_t b = (c - first) / BLOCK, position = start + r * columns + c;
      const F x = load_some(job.x + position, columns - c);
      return element<V, C>(job, x, splat(multipliers[b]), splat(scale_values[b]), position, columns - c);
    };
    if (C && FOUR_BITS && job.pack_rows) {
      for (int64_t r = top; r < bottom; r += 2)
        for (int64_t c = first; c < last; c += LANES) {
          I code = codes_at(r, c);
          if (r + 1 < bottom) code |= codes_at(r + 1, c) << 4;
          write_some(job.codes + (o * ceil_div(job.n, 2) + r / 2) * columns + c, bytes_of(code), columns - c);
        }
    } else {
      const int64_t stride = FOUR_BITS ? ceil_div(columns, 2) : columns;
      for (int64_t r = top; r < bottom; r++)
        for (int64_t c = first; c < last; c += LANES) {
          const I code = codes_at(r, c);
          if constexpr (C) {
            uint8_t* codes = job.codes + (o * job.n + r) * stride;
            write_line(codes + (FOUR_BITS ? c / 2 : c), code, columns - c);
          }
        }
    }
  }
}

// A contiguous run of elements under one scale, whose codes begin at a byte.
template <Values V, bool C> void run(Job job, const Scales& s, int64_t start, int64_t count, uint8_t* codes) {
  static_assert(!FOUR_BITS || BLOCKS != Blocks::tensor, "codes of 4 bits are packed along an axis, and a tensor has none");
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i;
    const I code = element<V, C>(job, load_some(job.x + start + i, left), s.multiplier, s.scale, start + i, left);
    if constexpr (C) write_line(codes + (FOUR_BITS ? i / 2 : i), code, left);
  }
}

struct Units {
  int64_t outer, inner;
};

Units units_of(const Job& job) {
  if constexpr (BLOCKS == Blocks::tensor) return {ceil_div(job.outer * job.n * job.inner, FLAT_UNIT), 1};
  if constexpr (BLOCKS == Blocks::square) return {job.outer, ceil_div(job.n, BLOCK)};
  if (job.inner == 1) return {job.outer, 1};
  return {job.outer, BLOCKS == Blocks::row ? ceil_div(job.inner, CACHE_LINE) : ceil_div(job.n, BLOCK)};
}

template <Values V, bool C> void unit(const Job& job, const Units& units, int64_t index) {
  const int64_t o = index / units.inner, i = index % units.inner;
  const int64_t top = i * BLOCK, bottom = top + BLOCK < job.n ? top + BLOCK : job.n;
  if constexpr (BLOCKS == Blocks::tensor) {
    const int64_t start = index * FLAT_UNIT, left = job.outer * job.n * job.inner - start;
    run<V, C>(job, scales_of(I{}, job.tensor), start, left < FLAT_UNIT ? left : FLAT_UNIT, job.codes + start);
  } else if constexpr (BLOCKS == Blocks::square) {
    squares<V, C>(job, o, top, bottom);
  } else if constexpr (BLOCKS == Blocks::row) {
    if (job.inner == 1) {
      const Scales s = scales_of(splat(amax_of(job.x + o * job.n, job.n)), job.tensor);
      if constexpr (C) write_scales(job.scales + o, s, 1);
      run<V, C>(job, s, o * job.n, job.n, job.codes + o * (FOUR_BITS ? ceil_div(job.n, 2) : job.n));
    } else {
      strip<V, C>(job, o, 0, job.n, i * CACHE_LINE, 0, 1);
    }
  } else if (job.inner == 1) {
    line_of_row<V, C>(job, o);
  } else {
    for (int64_t column = 0; column < job.inner; column += CACHE_LINE)
      strip<V, C>(job, o, top, bottom, column, i, units.inner);
  }
}

template <Values V, bool C> void run_units(const Job& job, const Units& units, int64_t first, int64_t last) {
  for (int64_t index = first; index < last; index++) unit<V, C>(job, units, index);
}

void run_units(const Job& job, Values values, const Units& units, int64_t first, int64_t last) {
  if (job.codes == nullptr) {
    if (values == full) run_units<full, false>(job, units, first, last);
    else run_units<exact, false>(job, units, first, last);
  } else if (values == none) {
    run_units<none, true>(job, units, first, last);
  } else if (values == full) {
    run_units<full, true>(job, units, first, last);
  } else {
    run_units<exact, true>(job, units, first, last);
  }
}

// values_kind: 0 none, 1 fp32, 2 bfloat16 without the tensor scale. codes and scales are null or both given. enc, dec:
// the tensor's scale, where the format has one. seed: of what is rounded at random.
extern "C" void metis_quantize(const void* x, int64_t outer, int64_t n, int64_t inner, int pack_rows, int values_kind,
                               void* values, void* codes, void* scales, const float* enc, const float* dec,
                               const int64_t* seed, int64_t stream, int threads) {
  Job job{(const Input*)x, outer, n, inner, pack_rows != 0, values, (uint8_t*)codes, (Stored*)scales, 0, {1, 1}};
  if (ROUNDING != Rounding::nearest) job.key = (uint64_t)*seed + (uint64_t)stream * 0x9E3779B97F4A7C15u;
  if (SCALE == ScaleKind::minifloat || BLOCKS == Blocks::tensor) job.tensor = {*enc, *dec};
  const int64_t numel = outer * n * inner;
  if (BLOCKS == Blocks::line && inner == 1 && n % BLOCK == 0 && numel % GROUP == 0) {  // one long line of blocks
    job.outer = numel / GROUP;
    job.n = GROUP;
  }
  const Units units = units_of(job);
  const int64_t count = units.outer * units.inner;
  threads = threads_for(numel, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t t = omp_get_thread_num(), of = omp_get_num_threads();
    run_units(job, (Values)values_kind, units, count * t / of, count * (t + 1) / of);
  }
}
