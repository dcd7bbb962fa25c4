"""Block scales: NVFP4's pinned order, the E8M0 modes, and the edges of both."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import decode_float
from gfloat.formats import format_info_ocp_e8m0
from hypothesis import given, settings
from hypothesis import strategies as st

from metis_compile.numerics import QuantSpec, encode, fake_quantize, quantize
from metis_compile.numerics.e8m0 import e8m0_from_bytes, e8m0_inverse, e8m0_to_bytes, e8m0_value
from metis_compile.numerics.formats import FORMATS

F32 = np.float32
amaxes = st.floats(min_value=2.0**-149, max_value=float(np.finfo(np.float32).max), width=32)


def scale_byte(amax: float, format: str, mode: str | None, rounding: str = "nearest", guard: str | None = None) -> int:
    spec = QuantSpec.make(format, None, rounding, guard, mode)
    noise = torch.zeros(1) if spec.stochastic else None
    return int(encode(torch.tensor([amax]), spec, 0, noise)[1].view(torch.uint8).item())


def test_e8m0_bytes_have_the_values_of_both_libraries() -> None:
    byte = torch.arange(256, dtype=torch.uint8)
    value = e8m0_value(byte.to(torch.int32))
    assert np.array_equal(value.numpy(), byte.numpy().view(ml_dtypes.float8_e8m0fnu).astype(F32), equal_nan=True)
    assert np.array_equal(
        value.numpy(), np.array([decode_float(format_info_ocp_e8m0, b).fval for b in range(256)], F32), equal_nan=True
    )
    assert torch.equal(e8m0_inverse(byte.to(torch.int32))[:254] * value[:254], torch.ones(254))
    assert e8m0_inverse(byte.to(torch.int32))[255].isnan()
    assert torch.equal(e8m0_to_bytes(e8m0_from_bytes(byte)), byte)
    assert torch.equal(e8m0_from_bytes(byte).float().nan_to_num(0), value.nan_to_num(0))


@pytest.mark.parametrize("format", ["mxfp4", "mxfp8", "mxfp8_e5m2"])
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(amax=amaxes)
def test_what_each_e8m0_mode_promises(format: str, amax: float) -> None:
    largest = FORMATS[format].element_max
    floor, rceil, even = (scale_byte(amax, format, mode) for mode in ("floor", "rceil", "even"))
    exponent = math.frexp(amax)[1] - 1 - (math.frexp(largest)[1] - 1)
    assert floor == max(exponent + 127, 0)
    if rceil > 0:  # the least power of two at which nothing saturates
        assert math.ldexp(largest, rceil - 127) >= amax
    if rceil > 1:
        assert math.ldexp(largest, rceil - 128) < amax
    assert floor <= even <= floor + 1
    assert scale_byte(amax, format, None, "stochastic") == rceil
    assert scale_byte(amax, format, "even", "stochastic") == rceil
    assert scale_byte(amax, format, "even", "stochastic", "none") == even


@pytest.mark.parametrize(
    ("format", "amax", "floor", "rceil", "even"),
    [
        ("mxfp4", 4.0, 127, 127, 127),
        ("mxfp4", 6.0, 127, 127, 127),
        ("mxfp4", 6.1, 127, 128, 127),
        ("mxfp4", 6.9999995, 127, 128, 127),
        ("mxfp4", 7.0, 127, 128, 128),  # a tie between mantissas 1.5 and 2
        ("mxfp4", 8.0, 128, 128, 128),
        ("mxfp8", 448.0, 127, 127, 127),
        ("mxfp8", 449.0, 127, 128, 127),
        ("mxfp8", 496.0, 127, 128, 128),
        ("mxfp8", 495.9, 127, 128, 127),
        ("mxfp8_e5m2", 57344.0, 127, 127, 127),
        ("mxfp8_e5m2", 61440.0, 127, 128, 128),
        ("mxfp4", 0.0, 0, 0, 0),
        ("mxfp4", 2.0**-149, 0, 0, 0),
        ("mxfp4", 3.4028234663852886e38, 252, 253, 253),
        ("mxfp4", math.inf, 255, 255, 255),
        ("mxfp8", math.nan, 255, 255, 255),
    ],
)
def test_e8m0_modes_by_example(format: str, amax: float, floor: int, rceil: int, even: int) -> None:
    for mode, byte in [("floor", floor), ("rceil", rceil), ("even", even)]:
        assert scale_byte(amax, format, mode) == byte, mode


def test_nvfp4_by_hand() -> None:
    x = torch.zeros(2, 16)
    x[0, :4] = torch.tensor([3.0, -1.5, 0.3, 0.1])
    x[1, 0] = 0.01
    quantized = quantize(x)
    enc = F32(448 * 6) / F32(3)
    dec = F32(1) / enc
    scales = np.array([F32(3) * (enc * F32(1 / 6)), F32(0.01) * (enc * F32(1 / 6))], F32)
    scales = scales.astype(ml_dtypes.float8_e4m3fn)
    assert quantized.tensor_scale is not None
    assert quantized.block_scales is not None
    assert quantized.tensor_scale.numpy() == dec
    assert quantized.block_scales.view(torch.uint8).flatten().tolist() == scales.view(np.uint8).tolist()
    assert quantized.codes[0, :2].tolist() == [7 | 13 << 4, 1 | 0 << 4]  # 6, -3; .6 -> .5, .2 -> 0
    assert quantized.dequantize()[0, 0].numpy() == F32(6) * F32(448) * dec


def test_a_block_scale_that_underflows_is_literally_zero() -> None:
    x = torch.full((2, 16), 1e-6)
    x[0, 0] = 1.0
    quantized = quantize(x)
    assert quantized.block_scales is not None
    assert quantized.block_scales.view(torch.uint8).tolist() == [[0x7E], [0]]
    assert quantized.codes[1].unique().tolist() == [0x77]
    assert quantized.dequantize()[1].eq(0).all()
    guarded = quantize(x, rounding="stochastic")  # up from there is the least subnormal
    assert guarded.block_scales is not None
    assert guarded.block_scales.view(torch.uint8).tolist() == [[0x7E], [1]]


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_have_code_zero_and_keep_their_sign(format: str) -> None:
    for block in FORMATS[format].blocks:
        quantized = quantize(torch.zeros(5, 70), format, block=block)
        assert not quantized.codes.any()
        if quantized.spec.fmt.scale != "fp32":
            assert quantized.block_scales is not None
            assert not quantized.block_scales.view(torch.uint8).any()
        values = quantize(-torch.zeros(5, 70), format, block=block).dequantize()
        assert values.eq(0).all()
        assert values.signbit().all()


@pytest.mark.parametrize("guard", ["round_up", "17/16"])
def test_guarded_nvfp4_scales_are_never_too_small(guard: str) -> None:
    x = torch.randn(64, 256) * torch.rand(64, 1)
    quantized = quantize(x, rounding="stochastic", guard=guard)
    assert quantized.block_scales is not None
    assert quantized.tensor_scale is not None
    reach = quantized.block_scales.float() * 6 * quantized.tensor_scale
    amax = x.abs().unflatten(1, (-1, 16)).amax(2)
    assert (amax <= reach * (1 + 2.0**-20)).all()
    plain = quantize(x).block_scales
    assert plain is not None
    assert (amax > plain.float() * 6 * quantized.tensor_scale * (1 + 2.0**-20)).any()


def neighbours(x: np.ndarray, count: int) -> np.ndarray:
    """x and the fp32 numbers up to `count` steps from it, along a new last dimension."""
    return (x.astype(F32).view(np.int32)[..., None] + np.arange(-count, count + 1, dtype=np.int32)).view(F32)


def cast(x: np.ndarray, element_type: type) -> np.ndarray:
    return x.astype(element_type).astype(F32)


def test_nvfp4_scales_where_the_order_of_operations_decides() -> None:
    """Block maxima next to ties of the scale, at which another order would round the other way."""
    rng = np.random.default_rng(0)
    amax = np.exp(rng.uniform(-5, 5, 400)).astype(F32)[:, None]
    enc = F32(448 * 6) / amax
    ties = rng.integers(0, 8, (400, 4)) / 8 + 1 + 1 / 16  # midway between two E4M3 values
    block = neighbours(ties * 2.0 ** rng.integers(0, 8, (400, 4)) * 6 / enc, 3).reshape(400, -1)
    pinned = cast(block * (enc * F32(1 / 6)), ml_dtypes.float8_e4m3fn)
    for other in (block * enc * F32(1 / 6), block * (enc / F32(6)), block * enc / F32(6), block / F32(6) * enc):
        assert (cast(other, ml_dtypes.float8_e4m3fn) != pinned).any()
    block = np.minimum(block, amax)
    pinned = cast(np.minimum(block * (enc * F32(1 / 6)), F32(448)), ml_dtypes.float8_e4m3fn)
    for a, row, want in zip(amax[:, 0], block, pinned, strict=True):
        x = torch.zeros(1 + row.size, 16)
        x[0, 0] = float(a)
        x[1:, 3] = torch.from_numpy(row)
        scales = quantize(x).block_scales
        assert scales is not None
        assert scales[1:, 0].float().numpy().tobytes() == want.tobytes()


def test_nvfp4_codes_where_the_order_of_operations_decides() -> None:
    """Elements next to ties of E2M1, at which another multiplier would round the other way."""
    rng = np.random.default_rng(0)
    amax = np.exp(rng.uniform(-5, 5, 200)).astype(F32)[:, None]
    enc = F32(448 * 6) / amax
    dec = F32(1) / enc
    scale = F32(448)  # that of the block which holds the largest
    factor = F32(1) / (scale * dec)
    x = neighbours(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]) / factor, 2)
    pinned = cast(x * factor[..., None], ml_dtypes.float4_e2m1fn)
    for other in (x * (enc / scale)[..., None], x / (scale * dec)[..., None], x * enc[..., None] / scale):
        assert (cast(other, ml_dtypes.float4_e2m1fn) != pinned).any()
    for a, row, want, d in zip(amax[:, 0], x.reshape(200, 5, 7), pinned.reshape(200, 5, 7), dec[:, 0], strict=True):
        blocks = torch.zeros(5, 16)
        blocks[:, 0] = float(a)
        blocks[:, 1:8] = torch.from_numpy(row)
        assert quantize(blocks).dequantize()[:, 1:8].numpy().tobytes() == (want * scale * d).tobytes()


@pytest.mark.parametrize("block", ["row", "1x128", "128x128"])
@pytest.mark.parametrize("format", ["fp8", "fp8_e5m2"])
def test_a_power_of_two_is_the_largest_multiplier_at_which_nothing_clips(format: str, block: str) -> None:
    x = torch.randn(140, 300) * torch.logspace(-30, 30, 140)[:, None]
    plain, power = (quantize(x, format, 1, block, scale_mode=mode) for mode in (None, "power_of_two"))
    assert plain.block_scales is not None
    assert power.block_scales is not None
    assert (torch.frexp(power.block_scales).mantissa == 0.5).all()
    assert ((power.block_scales >= plain.block_scales) & (power.block_scales < 2 * plain.block_scales)).all()
    assert power.spec.scale_mode == "power_of_two"
    largest = power.spec.element.max
    codes = power.codes.view(power.spec.element.dtype).float().abs()
    assert (codes <= largest).all()
    ratio = x.abs().amax() / (power.dequantize().abs().amax())
    assert 0.85 < ratio < 1.15  # of the largest element nothing is lost but rounding
    assert torch.equal(power.dequantize(), fake_quantize(x, power.spec, 1))


def test_a_power_of_two_where_the_multiplier_reaches_the_ends_of_float32() -> None:
    x = torch.zeros(5, 16)
    x[1], x[2], x[3], x[4, 3], x[4, 4] = 2.0**-149, 2.0**127, 448.0, torch.nan, 1.0
    power = quantize(x, "fp8", 1, "row", scale_mode="power_of_two")
    assert power.block_scales is not None
    assert power.block_scales[:4].flatten().tolist() == [1.0, 2.0**-127, 2.0**119, 1.0]
    assert power.block_scales[4].isnan().all()
    assert (power.codes[4] == 0x7F).all()
    assert torch.equal(power.dequantize()[[0, 2, 3]], x[[0, 2, 3]])


def test_the_scale_of_a_tensor_is_not_rounded_to_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="fp8 and fp8_e5m2 by row or block have 'power_of_two'"):
        QuantSpec.make("fp8", "tensor", scale_mode="power_of_two")
    with pytest.raises(ValueError, match="scale_mode must be None for fp8"):
        QuantSpec.make("fp8", "row", scale_mode="floor")
