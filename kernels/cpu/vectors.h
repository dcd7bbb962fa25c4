// Vectors of 16 lanes in GCC's and Clang's vector extension: one AVX-512 register, two of AVX2, four of NEON.
#pragma once
#include <cstdint>
#include <cstring>

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

constexpr int LANES = 16;
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));
typedef uint8_t U8 __attribute__((vector_size(16)));
typedef uint64_t L __attribute__((vector_size(64)));
typedef uint8_t Half8 __attribute__((vector_size(8)));
typedef uint16_t Half16 __attribute__((vector_size(16)));

struct Bfloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

constexpr int32_t SIGN = INT32_MIN;
constexpr int32_t MAGNITUDE = INT32_MAX;
constexpr int32_t EXPONENT = 0x7F800000;

INLINE F splat(float v) { return F{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }
INLINE I splat(int32_t v) { return I{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }
INLINE U lane_numbers() { return U{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
INLINE I larger(I a, I b) { return a > b ? a : b; }

template <class V, class T> INLINE V read(const T* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T> INLINE void write(T* p, V v) { memcpy(p, &v, sizeof(V)); }

INLINE F load(const float* p) { return read<F>(p); }
INLINE F load(const Bfloat16* p) { return (F)(__builtin_convertvector(read<U16>(p), U) << 16); }
INLINE F load(const Float16* p) {
  const I h = __builtin_convertvector(read<U16>(p), I);
  const I m = h & 0x7FFF;
  const I normal = (m << 13) + (112 << 23) + ((m >= 0x7C00) & (112 << 23));
  const I subnormal = (I)(__builtin_convertvector(m, F) * 0x1p-24f);
  return (F)((m < 0x400 ? subnormal : normal) | ((h & 0x8000) << 16));
}

// The first `count` lanes from memory, zeros behind them.
template <class T> INLINE F load_some(const T* p, int64_t count) {
  if (__builtin_expect(count >= LANES, 1)) return load(p);
  T lanes[LANES] = {};
  memcpy(lanes, p, count * sizeof(T));
  return load(lanes);
}

// The first `count` lanes to memory.
template <class V, class T> INLINE void write_some(T* p, V v, int64_t count) {
  if (__builtin_expect(count >= LANES, 1)) return write(p, v);
  T lanes[LANES];
  write(lanes, v);
  memcpy(p, lanes, count * sizeof(T));
}

// By way of 16 bits: GCC takes the lanes apart otherwise.
INLINE U8 bytes_of(I v) { return __builtin_convertvector(__builtin_convertvector((U)v, U16), U8); }
INLINE I integers_of(U8 v) { return __builtin_convertvector(__builtin_convertvector(v, U16), I); }
INLINE U16 bfloat16_of(F v) { return __builtin_convertvector((U)v >> 16, U16); }  // of what bfloat16 holds exactly

// Two lanes, each 0..15, to a byte, the lower one in the low nibble.
INLINE Half8 nibbles_of(I v) {
  const L pair = (L)v;
  return __builtin_convertvector(pair | (pair >> 28), Half8);
}

// The inverse of nibbles_of.
INLINE I integers_of_nibbles(Half8 v) {
  const Half16 wide = __builtin_convertvector(v, Half16);
  return integers_of((U8)((wide | (wide << 4)) & 0x0F0F));
}

template <int... lanes, class V> INLINE V pick(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, lanes...);
#else
  return __builtin_shuffle(a, b, I{lanes...});
#endif
}

// Lane j of the result combines the lanes of v[j].
template <class V, class Combine> INLINE V combined_lanes(V v[LANES], const Combine& combine) {
  for (int i = 0; i < 8; i++)
    v[i] = combine(pick<0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30>(v[2 * i], v[2 * i + 1]),
                   pick<1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31>(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; i++)
    v[i] = combine(pick<0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29>(v[2 * i], v[2 * i + 1]),
                   pick<2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31>(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 2; i++)
    v[i] = combine(pick<0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27>(v[2 * i], v[2 * i + 1]),
                   pick<4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31>(v[2 * i], v[2 * i + 1]));
  return combine(pick<0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23>(v[0], v[1]),
                 pick<8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31>(v[0], v[1]));
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
