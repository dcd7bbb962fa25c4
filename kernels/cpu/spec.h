// What one library is compiled for. The METIS_ macros are written in front of the source by compile.py.
#pragma once
#include "minifloat.h"

enum class ScaleFormat { e4m3, e8m0, fp32 };
enum class Blocks { line, square, row, tensor };  // 1xN along the axis, NxN, the whole axis, everything
enum class Rounding { nearest, stochastic, eden };
enum class Guard { none, round_up, seventeen_sixteenths };
enum class Select { none, mse, mae, expected };  // by what four-over-six chooses

using Element = Minifloat<METIS_MANTISSA_BITS, METIS_MIN_EXPONENT>;
using E4M3 = Minifloat<3, -6>;
constexpr float ELEMENT_MAX = METIS_ELEMENT_MAX;
constexpr int MAX_EXPONENT = METIS_MAX_EXPONENT;
constexpr ScaleFormat SCALE = ScaleFormat::METIS_SCALE;
constexpr Blocks BLOCKS = Blocks::METIS_BLOCKS;
constexpr int64_t BLOCK = METIS_BLOCK;  // elements along one side; 1 for row and tensor
constexpr Rounding ROUNDING = Rounding::METIS_ROUNDING;
constexpr Guard GUARD = Guard::METIS_GUARD;
constexpr Select SELECT = Select::METIS_SELECT;
constexpr int32_t E8M0_CARRY = METIS_E8M0_CARRY;
constexpr bool POWER_OF_TWO = METIS_POWER_OF_TWO;  // a fp32 scale is rounded to one
constexpr bool FOUR_BITS = Element::bits == 4;
using Input = METIS_INPUT;

// What is stored of a block's scale.
template <ScaleFormat> struct StoredScale { using type = uint8_t; };
template <> struct StoredScale<ScaleFormat::fp32> { using type = float; };
using Stored = StoredScale<SCALE>::type;

constexpr int64_t ceil_div(int64_t n, int64_t size) { return (n + size - 1) / size; }
