// Vectors in GCC's and Clang's vector extension: one register of AVX-512 or AVX2, two of NEON or SSE.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

// How many numbers of 32 bits a vector has: those of a register. GCC takes wider vectors apart by way of memory.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int CACHE_LINE = 16;  // numbers of 32 bits

typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint64_t L __attribute__((vector_size(4 * LANES)));
typedef uint16_t U16 __attribute__((vector_size(2 * LANES)));
typedef uint8_t U8 __attribute__((vector_size(LANES)));

struct Bfloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

constexpr int32_t SIGN = INT32_MIN;
constexpr int32_t MAGNITUDE = INT32_MAX;
constexpr int32_t EXPONENT = 0x7F800000;

constexpr auto ALL_LANES = std::make_index_sequence<LANES>();
template <size_t... lanes> INLINE U lane_numbers(std::index_sequence<lanes...>) { return U{lanes...}; }
INLINE U lane_numbers() { return lane_numbers(ALL_LANES); }
INLINE F splat(float v) { return v - F{}; }
INLINE I splat(int32_t v) { return v + I{}; }
INLINE U splat(uint32_t v) { return v + U{}; }
INLINE F where(I mask, F v) { return (F)(mask & (I)v); }  // zero elsewhere
INLINE I larger(I a, I b) { return a > b ? a : b; }

template <class V, class T> INLINE V read(const T* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T> INLINE void write(T* p, V v) { memcpy(p, &v, sizeof(V)); }

template <int... lanes, class V> INLINE V pick(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, lanes...);
#else
  return __builtin_shuffle(a, b, I{lanes...});
#endif
}

// Sixteen numbers of 4 bits in 64, or eight in 32.
using Nibbles = std::conditional_t<LANES == 16, uint64_t, uint32_t>;

INLINE L paired_nibbles(I v) { return (L)v | ((L)v >> 28); }  // in the lowest byte of 64 bits

#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__clang__)
// GCC makes several instructions, or one for each lane, of the general forms below.
typedef uint8_t Bytes __attribute__((vector_size(32)));
typedef uint16_t Shorts __attribute__((vector_size(32)));
typedef char Char16 __attribute__((vector_size(16)));
typedef short Short8 __attribute__((vector_size(16)));
typedef long long Long2 __attribute__((vector_size(16)));

INLINE F at_most(F v, float limit) { return __builtin_ia32_minps256(splat(limit), v); }
INLINE I widened(U16 v) { return (I)__builtin_ia32_pmovzxwd256((Short8)v); }
INLINE I widened(U8 v) { return (I)__builtin_ia32_pmovzxbd256((Char16)Long2{(long long)read<uint64_t>(&v), 0}); }

INLINE U8 bytes_of(I v) {
  const Bytes b = __builtin_shuffle((Bytes)v, Bytes{0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28,
                                                    0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28});
  return read<U8>(&b);
}
INLINE Nibbles nibbles_of(I v) {
  const Bytes b = __builtin_shuffle((Bytes)paired_nibbles(v), Bytes{0, 8, 16, 24, 0, 8, 16, 24, 0, 8, 16, 24, 0, 8, 16, 24,
                                                                    0, 8, 16, 24, 0, 8, 16, 24, 0, 8, 16, 24, 0, 8, 16, 24});
  return ((U)b)[0];
}
INLINE U16 bfloat16_of(F v) {
  const Shorts s = __builtin_shuffle((Shorts)v, Shorts{1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15});
  return read<U16>(&s);
}
#else
// v, or limit where v is larger. NaN stays.
INLINE F at_most(F v, float limit) { return v > limit ? splat(limit) : v; }
INLINE I widened(U16 v) { return __builtin_convertvector(v, I); }

// By way of 16 bits: GCC takes the lanes apart otherwise.
INLINE I widened(U8 v) { return widened(__builtin_convertvector(v, U16)); }
INLINE U8 bytes_of(I v) { return __builtin_convertvector(__builtin_convertvector((U)v, U16), U8); }

// Lanes of 0..15, the first in the low nibble of the first byte.
INLINE Nibbles nibbles_of(I v) {
  typedef uint8_t Half __attribute__((vector_size(LANES / 2)));
  const Half bytes = __builtin_convertvector(paired_nibbles(v), Half);
  return read<Nibbles>(&bytes);
}
INLINE U16 bfloat16_of(F v) { return __builtin_convertvector((U)v >> 16, U16); }  // of what bfloat16 holds exactly
#endif

// The inverse of nibbles_of.
INLINE I integers_of(Nibbles v) {
  U words = splat((uint32_t)v);
  if constexpr (LANES == 16) words = lane_numbers() < 8 ? words : splat((uint32_t)((uint64_t)v >> 32));
  return (I)(words >> (lane_numbers() % 8 * 4)) & 15;
}

INLINE F load(const float* p) { return read<F>(p); }
INLINE F load(const Bfloat16* p) { return (F)(widened(read<U16>(p)) << 16); }
INLINE F load(const Float16* p) {
  const I h = widened(read<U16>(p));
  const I m = h & 0x7FFF;
  const I normal = (m << 13) + (112 << 23) + ((m >= 0x7C00) & (112 << 23));
  const I subnormal = (I)(__builtin_convertvector(m, F) * 0x1p-24f);
  return (F)((m < 0x400 ? subnormal : normal) | ((h & 0x8000) << 16));
}
INLINE I load(const uint8_t* p) { return widened(read<U8>(p)); }

// A call of memcpy would put every vector that is in use on the stack.
template <class T> INLINE void copy_few(T* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    to[i] = from[i];
    asm volatile("" ::: "memory");
  }
}

// The first `count` lanes from memory, zeros behind them.
template <class T> INLINE auto load_some(const T* p, int64_t count) {
  if (__builtin_expect(count >= LANES, 1)) return load(p);
  T lanes[LANES] = {};
  copy_few(lanes, p, count);
  return load(lanes);
}

// The first `count` lanes to memory.
template <class V, class T> INLINE void write_some(T* p, V v, int64_t count) {
  if (__builtin_expect(count >= LANES, 1)) return write(p, v);
  T lanes[LANES];
  write(lanes, v);
  copy_few(p, lanes, count);
}

// Of each pair of runs of `width` lanes, in a and then in b: the first, or the second.
template <int width, size_t... lanes, class V> INLINE V firsts(V a, V b, std::index_sequence<lanes...>) {
  return pick<(lanes & width ? LANES + lanes - width : lanes)...>(a, b);
}
template <int width, size_t... lanes, class V> INLINE V seconds(V a, V b, std::index_sequence<lanes...>) {
  return pick<(lanes & width ? LANES + lanes : lanes + width)...>(a, b);
}

// Lane j of the result combines the lanes of v[j].
template <int width = 1, class V, class Combine> INLINE V combined_lanes(V* v, const Combine& combine) {
  if constexpr (width == LANES) {
    return v[0];
  } else {
    for (int i = 0; i < LANES / 2 / width; i++)
      v[i] = combine(firsts<width>(v[2 * i], v[2 * i + 1], ALL_LANES), seconds<width>(v[2 * i], v[2 * i + 1], ALL_LANES));
    return combined_lanes<2 * width>(v, combine);
  }
}

INLINE I largest_of_each(I v[LANES]) { return combined_lanes(v, larger); }
INLINE F sum_of_each(F v[LANES]) {
  return combined_lanes(v, [](F a, F b) __attribute__((always_inline)) { return a + b; });
}

INLINE int32_t largest(I v) {
  int32_t lanes[LANES], result = 0;
  write(lanes, v);
  for (int32_t lane : lanes) result = lane > result ? lane : result;
  return result;
}
