// What one library is compiled for. The METIS_ macros are written in front of the source by compile.py.
#pragma once
#include "minifloat.h"

enum class ScaleKind { minifloat, exponent, float32 };  // rounded to a grid; E8M0; not rounded
enum class Blocks { line, square, row, tensor };  // 1xN along the axis, NxN, the whole axis, everything
enum class Rounding { nearest, stochastic, eden };
enum class Select { none, mse, mae, expected };  // by what four-over-six chooses

using Element = METIS_ELEMENT;
using ScaleGrid = METIS_SCALE_GRID;
constexpr float ELEMENT_MAX = METIS_ELEMENT_MAX;
constexpr float INVERSE_ELEMENT_MAX = METIS_INVERSE_ELEMENT_MAX;
constexpr float SCALE_MAX = METIS_SCALE_MAX;
constexpr int MAX_EXPONENT = METIS_MAX_EXPONENT;
constexpr ScaleKind SCALE = ScaleKind::METIS_SCALE;
constexpr Blocks BLOCKS = Blocks::METIS_BLOCKS;
constexpr int64_t BLOCK = METIS_BLOCK;  // elements along one side; 1 for row and tensor
constexpr Rounding ROUNDING = Rounding::METIS_ROUNDING;
constexpr bool ROUND_UP = METIS_ROUND_UP;             // a minifloat scale
constexpr float GUARD_FACTOR = METIS_GUARD_FACTOR;    // of scales before they are rounded
constexpr Select SELECT = Select::METIS_SELECT;
constexpr int32_t E8M0_CARRY = METIS_E8M0_CARRY;
constexpr bool POWER_OF_TWO = METIS_POWER_OF_TWO;  // a fp32 scale is rounded to one
constexpr float SUM_ANCHOR = METIS_SUM_ANCHOR;  // makes sums over blocks exact, where it is added and taken away again
constexpr bool FOUR_BITS = METIS_CODES_PER_BYTE == 2;
static_assert(FOUR_BITS ? Element::bits == 4 : METIS_CODES_PER_BYTE == 1, "codes lie two to a byte, of 4 bits, or one");
static_assert(BLOCK == 1 || BLOCK % LANES == 0, "a block of a fixed size is a multiple of a vector");
using Input = METIS_INPUT;

// What is stored of a block's scale.
template <ScaleKind> struct StoredScale { using type = uint8_t; };
template <> struct StoredScale<ScaleKind::float32> { using type = float; };
using Stored = StoredScale<SCALE>::type;

constexpr int64_t ceil_div(int64_t n, int64_t size) { return (n + size - 1) / size; }
