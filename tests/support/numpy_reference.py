"""Quantization a second time, in NumPy: block by block in Python loops, rounding by ml_dtypes' casts and by tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F32 = np.float32
FP32_MAX = np.finfo(np.float32).max

ELEMENT_TYPES: dict[str, Any] = {
    "nvfp4": ml_dtypes.float4_e2m1fn,
    "mxfp4": ml_dtypes.float4_e2m1fn,
    "mxfp8": ml_dtypes.float8_e4m3fn,
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp4": ml_dtypes.float4_e2m1fn,
    "nvfp4_ue5m3": ml_dtypes.float4_e2m1fn,
}
# UE5M3 is float16 without its sign and its seven lowest bits.
UE5M3 = (np.arange(256, dtype=np.uint16) << 7).view(np.float16).astype(np.float32)
UE5M3_GRID = UE5M3[np.isfinite(UE5M3)]


@dataclass
class Quantized:
    codes: Array  # uint8, packed for E2M1
    scales: Array | None  # uint8, or float32 for fp8; None for one scale per tensor
    tensor_scale: np.float32 | None
    values: Array  # float32


def grid(element_type: Any) -> Array:
    """The finite magnitudes of an element type, ascending."""
    bits = 4 if element_type is ml_dtypes.float4_e2m1fn else 8
    every = np.arange(2 ** (bits - 1), dtype=np.uint8).view(element_type).astype(np.float64)
    return every[np.isfinite(every)]


def round_element(value: np.float32, element_type: Any, noise: float | None) -> Any:
    """Saturate, then round: to nearest by ml_dtypes' cast, or stochastically between neighbours in the table."""
    largest = grid(element_type)[-1]
    clamped = np.clip(value, F32(-largest), F32(largest))
    if noise is None or not np.isfinite(clamped):
        return clamped.astype(element_type)
    magnitudes = grid(element_type)
    above = int(np.searchsorted(magnitudes, abs(float(clamped)), side="left"))
    if magnitudes[above] == abs(float(clamped)):
        chosen = magnitudes[above]
    else:
        low, high = magnitudes[above - 1], magnitudes[above]
        chosen = high if (abs(float(clamped)) - low) / (high - low) + noise >= 1 else low
    return F32(math.copysign(chosen, clamped)).astype(element_type)


def blocks_of(shape: tuple[int, ...], block: str, axis: int) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """(index of the scale, slices of the elements) of every block."""
    sizes = [1] * len(shape)
    if block == "tensor":
        sizes = [max(n, 1) for n in shape]
    elif block == "row":
        sizes[axis] = max(shape[axis], 1)
    elif block.startswith("1x"):
        sizes[axis] = int(block[2:])
    else:
        sizes[-1] = sizes[-2] = int(block.split("x")[0])
    for index in np.ndindex(*(-(-n // size) for n, size in zip(shape, sizes, strict=True))):
        yield index, tuple(slice(i * size, (i + 1) * size) for i, size in zip(index, sizes, strict=True))


def e8m0_byte(amax: float, element_type: Any, mode: str) -> int:
    """The biased exponent by exact arithmetic on Python floats."""
    if not math.isfinite(amax):
        return 255
    if amax == 0:
        return 0
    largest = grid(element_type)[-1]
    if mode == "rceil":
        exponent = next(e for e in range(-200, 200) if math.ldexp(largest, e) >= amax)
    else:
        mantissa, exponent = math.frexp(amax)  # mantissa in [0.5, 1)
        if mode == "even":
            bits = {"float4_e2m1fn": 1, "float8_e4m3fn": 3, "float8_e5m2": 2}[np.dtype(element_type).name]
            _, carry = math.frexp(round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1))
            exponent += carry
        exponent -= 1 + int(math.log2(largest))
    return min(max(exponent + 127, 0), 254)


def scale_code(ideal: np.float32, format: str, guard: str | None, noise: float | None = None) -> tuple[int, np.float32]:
    """(byte, value) of a block scale: to nearest, up, or by the noise."""
    magnitudes = UE5M3_GRID if format == "nvfp4_ue5m3" else grid(ml_dtypes.float8_e4m3fn)
    ideal = np.minimum(ideal, F32(magnitudes[-1]))
    if not np.isfinite(ideal):
        return (0xFF if format == "nvfp4_ue5m3" else 0x7F), F32(np.nan)
    above = int(np.searchsorted(magnitudes, float(ideal), side="left"))
    if guard != "round_up" and magnitudes[above] != float(ideal):
        low, high = float(magnitudes[above - 1]), float(magnitudes[above])
        share = (float(ideal) - low) / (high - low)
        is_lower = share + noise < 1 if noise is not None else share < 0.5 or (share == 0.5 and above % 2 == 1)
        above -= is_lower
    return above, F32(magnitudes[above])


def quantize(
    x: Array,
    format: str,
    block: str,
    axis: int,
    *,
    rounding: str = "nearest",
    guard: str | None = None,
    scale_mode: str | None = None,
    select: str | None = None,
    noise: Array | None = None,
    amax: np.float32 | None = None,
) -> Quantized:
    """x: float32. The formulas are those of the documentation, one numpy scalar at a time.

    amax: of the tensor, in place of x's own.
    """
    with np.errstate(all="ignore"):
        if rounding == "eden":
            assert noise is not None
            return _eden(x, format, block, axis % x.ndim, noise, amax)
        if format.startswith("nv"):
            return _nvfp4(x, format, block, axis % x.ndim, guard, None, noise, select, amax)
        if amax is not None:
            assert block == "tensor"
            return _fp8(x, format, block, axis % x.ndim, guard, scale_mode, noise, amax)
        family: Callable[..., Quantized] = {"mx": _mx, "fp": _fp8, "uf": _ufp4}[format[:2]]
        return family(x, format, block, axis % x.ndim, guard, scale_mode, noise)


def _empty_scales(x: Array, block: str, axis: int, dtype: Any) -> Array:
    shape = list(x.shape)
    if block == "row":
        shape[axis] = 1
    elif block.startswith("1x"):
        shape[axis] = -(-shape[axis] // int(block[2:]))
    else:
        size = int(block.split("x")[0])
        shape[-2:] = [-(-shape[-2] // size), -(-shape[-1] // size)]
    return np.zeros(shape, dtype)


def _amax(block: Array) -> np.float32:
    return np.max(np.abs(block)) if block.size else F32(0)


def _round_block(x: Array, where: Any, factor: np.float32, element_type: Any, noise: Array | None) -> Array:
    elements = x[where]
    rounded = np.zeros(elements.shape, element_type)
    for i in np.ndindex(*elements.shape):
        rounded[i] = round_element(
            elements[i] * factor, element_type, None if noise is None else float(noise[where][i])
        )
    return rounded


def _nvfp4(
    x: Array,
    format: str,
    block: str,
    axis: int,
    guard: str | None,
    mode: None,
    noise: Array | None,
    select: str | None = None,
    amax: np.float32 | None = None,
) -> Quantized:
    amax = _amax(x) if amax is None else amax
    enc = F32(1) if amax == 0 else np.minimum(F32((256 if select else 448) * 6) / amax, FP32_MAX)
    dec = F32(1) / enc
    scales = _empty_scales(x, block, axis, np.uint8)
    codes = np.zeros(x.shape, ml_dtypes.float4_e2m1fn)
    values = np.zeros(x.shape, F32)
    for index, where in blocks_of(x.shape, block, axis):
        ideal = _amax(x[where]) * (enc * F32(1 / 6))
        if guard == "17/16":
            ideal = ideal * F32(1.0625)
        choices = [scale_code(ideal, format, guard)]
        if select is not None:
            choices.append(scale_code(ideal * F32(1.5), format, guard))
        factors = [np.minimum(F32(1) / (scale * dec), FP32_MAX) for _, scale in choices]
        best = 0
        if select is not None:
            size = 256 if block == "16x16" else 16
            six, four = (
                _block_error(x[where] * factor, scale, select, size)
                for factor, (_, scale) in zip(factors, choices, strict=True)
            )
            best = int(four < six or (choices[0][1] == 0 and choices[1][1] != 0))
        scales[index], scale = choices[best]
        codes[where] = _round_block(x, where, factors[best], ml_dtypes.float4_e2m1fn, noise)
        values[where] = codes[where].astype(F32) * scale * dec
    return Quantized(_pack(codes.view(np.uint8), axis), scales, dec, values)


def _eden(x: Array, format: str, block: str, axis: int, noise: Array, amax: np.float32 | None = None) -> Quantized:
    """NVFP4 to nearest, with block scales that are corrected and rounded by the noise, one number per block."""
    amax = _amax(x) if amax is None else amax
    enc = F32(1) if amax == 0 else np.minimum(F32(256 * 6) / amax, FP32_MAX)
    dec = F32(1) / enc
    places = 10 if block == "16x16" else 14
    scales = _empty_scales(x, block, axis, np.uint8)
    codes = np.zeros(x.shape, ml_dtypes.float4_e2m1fn)
    values = np.zeros(x.shape, F32)
    for index, where in blocks_of(x.shape, block, axis):
        ideal = _amax(x[where]) * (enc * F32(1 / 6))
        factor = np.minimum(F32(1) / (ideal * dec), FP32_MAX)
        codes[where] = _round_block(x, where, factor, ml_dtypes.float4_e2m1fn, None)
        scaled = np.minimum(np.abs(x[where] * factor), F32(6))
        rounded = np.abs(codes[where].astype(F32))
        if np.isfinite(scaled).all() and np.isfinite(ideal):
            itself = _fixed_sum(scaled * scaled, places)
            other = _fixed_sum(scaled * rounded, places)
            correction = F32(1) if other == 0 else itself / other
            ideal = ideal * correction
        else:
            ideal = F32(np.nan)
        scales[index], scale = scale_code(ideal, format, None, float(noise[index]))
        values[where] = codes[where].astype(F32) * scale * dec
    return Quantized(_pack(codes.view(np.uint8), axis), scales, dec, values)


def _fixed_sum(terms: Array, places: int) -> np.float32:
    """Of terms to a fixed number of binary places, a half going to the even one, summed without rounding."""
    return F32(sum(round(float(term) * 2**places) for term in terms.ravel()) / 2**places)


def _block_error(scaled: Array, scale: np.float32, select: str, size: int) -> np.float32:
    """Of a block after scaling: each element's error to a fixed number of binary places, summed without rounding."""
    places = (18 if select == "mae" else 16) - (4 if size == 256 else 0)
    magnitudes = grid(ml_dtypes.float4_e2m1fn).astype(F32)
    total = 0
    for v in np.abs(scaled).ravel():
        if select == "expected":
            low = magnitudes[magnitudes <= v].max(initial=0)
            high = magnitudes[magnitudes >= v].min(initial=6)
            error = (v - low) * (high - v) if v <= 6 else (v - F32(6)) * (v - F32(6))
        else:
            error = np.abs(v - magnitudes[np.argmin(np.abs(magnitudes - v))])
            error = error if select == "mae" else error * error
        if not np.isfinite(error):
            return F32(np.nan)
        total += round(float(error) * 2**places)  # a half goes to the even one
    error = F32(total / 2**places) * scale
    return error if select == "mae" else error * scale


def _mx(
    x: Array, format: str, block: str, axis: int, guard: str | None, mode: str | None, noise: Array | None
) -> Quantized:
    element_type = ELEMENT_TYPES[format]
    scales = _empty_scales(x, block, axis, np.uint8)
    codes = np.zeros(x.shape, element_type)
    values = np.zeros(x.shape, F32)
    for index, where in blocks_of(x.shape, block, axis):
        amax = float(_amax(x[where]))
        scales[index] = e8m0_byte(amax, element_type, "rceil" if guard == "round_up" else str(mode))
        scale = scales[index : index + 1] if np.isscalar(index) else np.array(scales[index], np.uint8)
        scale = scale.view(ml_dtypes.float8_e8m0fnu).astype(F32)[()]
        codes[where] = _round_block(x, where, F32(1) / scale, element_type, noise)
        values[where] = codes[where].astype(F32) * scale
    raw = codes.view(np.uint8)
    return Quantized(_pack(raw, axis) if format == "mxfp4" else raw, scales, None, values)


def _fp8(
    x: Array,
    format: str,
    block: str,
    axis: int,
    guard: str | None,
    mode: str | None,
    noise: Array | None,
    of_tensor: np.float32 | None = None,
) -> Quantized:
    element_type = ELEMENT_TYPES[format]
    scales = np.zeros([1] * x.ndim, F32) if block == "tensor" else _empty_scales(x, block, axis, F32)
    if x.size == 0:
        scales[...] = 1
    codes = np.zeros(x.shape, element_type)
    values = np.zeros(x.shape, F32)
    for index, where in blocks_of(x.shape, block, axis):
        amax = _amax(x[where]) if of_tensor is None else of_tensor
        enc = F32(1) if amax == 0 else np.minimum(F32(grid(element_type)[-1]) / amax, FP32_MAX)
        if mode == "power_of_two":
            enc = F32(math.ldexp(0.5, math.frexp(enc)[1]))
        scales[index] = F32(1) / enc
        codes[where] = _round_block(x, where, enc, element_type, noise)
        values[where] = codes[where].astype(F32) * scales[index]
    raw = codes.view(np.uint8)
    if block == "tensor":
        return Quantized(raw, None, scales.reshape(())[()], values)
    return Quantized(_pack(raw, axis) if format == "fp4" else raw, scales, None, values)


def _ufp4(
    x: Array, format: str, block: str, axis: int, guard: str | None, mode: str | None, noise: Array | None
) -> Quantized:
    """Multiples of a half up to 3.5, under float32 scales."""
    scales = _empty_scales(x, block, axis, F32)
    codes, values = np.zeros(x.shape, np.uint8), np.zeros(x.shape, F32)
    for index, where in blocks_of(x.shape, block, axis):
        amax = _amax(x[where])
        enc = F32(1) if amax == 0 else np.minimum(F32(3.5) / amax, FP32_MAX)
        scales[index] = F32(1) / enc
        scaled = x[where] * enc
        halves = np.minimum(np.abs(scaled), F32(3.5)).astype(np.float64) * 2
        steps = np.rint(halves) if noise is None else np.floor(halves) + (halves % 1 + noise[where] >= 1)
        codes[where] = steps.astype(np.uint8) | np.signbit(scaled) << 3
        values[where] = np.copysign(steps / 2, scaled).astype(F32) * scales[index]
    return Quantized(_pack(codes, axis), scales, None, values)


def _pack(codes: Array, axis: int) -> Array:
    moved = np.moveaxis(codes, axis, -1)
    packed = np.zeros((*moved.shape[:-1], -(-moved.shape[-1] // 2)), np.uint8)
    for i in range(moved.shape[-1]):
        packed[..., i // 2] |= moved[..., i] << (4 * (i % 2))
    return np.moveaxis(packed, -1, axis)
