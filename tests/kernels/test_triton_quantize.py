"""The Triton quantize kernel gives, byte for byte, what the plain-torch numerics give."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import value_families
from cross_compile import CAPABILITIES
from quantize_kernel import quantize_kernel
from same_bytes import assert_same_parts
from torch import Tensor

from metis_compile.kernels.quantize.ops import QUANTIZE_TILES, QUANTIZE_TILES_INTO
from metis_compile.numerics import QuantSpec, encode, noise_shape, uniform_noise

triton = pytest.importorskip("triton")
tl = triton.language

from metis_compile.kernels.quantize import tiles  # noqa: E402
from metis_compile.kernels.quantize.conditioned import Source  # noqa: E402
from metis_compile.kernels.quantize.noise import noise_at  # noqa: E402

SPECS = [
    "nvfp4 1x16 nearest",
    "nvfp4 1x16 stochastic round_up",
    "nvfp4 16x16 nearest",
    "nvfp4 16x16 stochastic 17/16",
    "nvfp4 1x16 nearest 4/6-mse",
    "nvfp4 16x16 nearest 4/6-mae",
    "nvfp4 1x16 stochastic round_up 4/6-expected",
    "nvfp4 1x16 eden",
    "nvfp4 16x16 eden",
    "mxfp4 1x32 nearest floor",
    "mxfp4 1x32 stochastic round_up even",
    "mxfp8 1x32 nearest rceil",
    "mxfp8 1x32 nearest even",
    "mxfp8_e5m2 1x32 nearest floor",
    "mxfp8_e5m2 1x32 stochastic none floor",
    "fp8 1x128 nearest",
    "fp8 1x128 stochastic round_up",
    "fp8_e5m2 128x128 nearest",
]
SHAPES = [(37, 70), (16, 32), (1, 33), (130, 7), (3, 20, 50), (64, 128), (2, 3, 17, 40)]
SEED = 0x7A5B_1234_9ABC_DEF0
NOTHING_ELSE = (None, None, None)  # factors and signs: see test_triton_conditioned.py


def quantized(
    x: Tensor, spec: QuantSpec, axes: Sequence[int], streams: Sequence[int], mean: Any = None
) -> list[Tensor]:
    centered = x.float() if mean is None else x.float() - mean
    amax = centered.abs().amax() if spec.fmt.tensor_scale and x.numel() else torch.zeros(())
    return QUANTIZE_TILES(
        x,
        mean,
        *NOTHING_ELSE,
        amax if spec.fmt.tensor_scale else None,
        torch.tensor([SEED]) if spec.needs_noise else None,
        str(spec),
        list(axes),
        list(streams),
    )


def check(x: Tensor, spec: QuantSpec, axes: Sequence[int], what: str = "", mean: Any = None) -> None:
    """All `axes` in one call, against one `encode` each."""
    streams = [3, 3] if spec.orientation_free else [3, 4]
    made = quantized(x, spec, axes, streams, mean)
    centered = x if mean is None else x.float() - mean
    for i, (axis, stream) in enumerate(zip(axes, streams, strict=False)):
        noise = None
        if spec.needs_noise:
            noise = uniform_noise(torch.tensor([SEED]), stream, noise_shape(x.shape, spec, axis))
        expected = encode(centered, spec, axis, noise)
        assert_same_parts([*made[2 * i : 2 * i + 2], *made[2 * len(axes) :]], expected, spec, f"{what} axis {axis}")


# Below 8.9 FP8 is rounded by other code; everything else is the same.
WITHOUT_FP8 = [(text, 80) for text in SPECS if "fp4" not in text and "nearest" in text]


@pytest.mark.parametrize(("text", "capability"), [*((text, 90) for text in SPECS), *WITHOUT_FP8])
def test_bytes_are_those_of_the_numerics(triton_on_cpu: Any, text: str, capability: int) -> None:
    triton_on_cpu.capability = capability
    spec = QuantSpec.parse(text)
    for number, (family, shape) in enumerate(zip(value_families.FAMILIES, itertools.cycle(SHAPES), strict=False)):
        x = torch.from_numpy(value_families.draw(family, number, shape))
        check(x, spec, [(-1, -2), (-2, -1), (-1,), (-2,)][number % 4], f"{family} {shape}")


@pytest.mark.parametrize("text", ["nvfp4 1x16 stochastic round_up", "mxfp8 1x32 nearest floor"])
def test_any_axis(triton_on_cpu: Any, text: str) -> None:
    x = torch.randn(19, 3, 21)
    check(x, QuantSpec.parse(text), [0])
    check(torch.randn(35), QuantSpec.parse(text), [0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "fp8 1x128 nearest"])
def test_16_bit_input(triton_on_cpu: Any, text: str, dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()]
    x = finite[torch.randperm(finite.numel())][:63360].reshape(40, 1584)
    check(x, QuantSpec.parse(text), (1, 0))


@pytest.mark.parametrize("text", SPECS)
def test_what_is_not_finite(triton_on_cpu: Any, text: str) -> None:
    for special in (math.nan, math.inf, -math.inf):
        x = torch.randn(40, 65)
        x[7, 33] = special
        check(x, QuantSpec.parse(text), (1, 0), str(special))


@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "nvfp4 16x16 nearest", "fp8 1x128 nearest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_subtracted(triton_on_cpu: Any, text: str, dtype: torch.dtype) -> None:
    x = (torch.randn(37, 70) + 10).to(dtype)
    check(x, QuantSpec.parse(text), (1, 0), mean=torch.randn(1, 70) + 10)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 4)])
@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "mxfp8 1x32 nearest floor"])
def test_nothing(triton_on_cpu: Any, text: str, shape: tuple[int, ...]) -> None:
    check(torch.empty(shape), QuantSpec.parse(text), (-1, -2))


@pytest.mark.parametrize("text", SPECS)
def test_every_byte_is_written_and_nothing_else(triton_on_cpu: Any, text: str) -> None:
    spec = QuantSpec.parse(text)
    x = torch.randn(37, 75)
    axes, streams = [1, 0], [3, 3] if spec.orientation_free else [3, 4]
    expected = quantized(x, spec, axes, streams)
    amax = x.abs().amax() if spec.fmt.tensor_scale else None
    seed = torch.tensor([SEED]) if spec.needs_noise else None
    for fill in (0x00, 0xFF):
        buffers = [torch.full((part.nbytes + 128,), fill, dtype=torch.uint8) for part in expected]
        out = [b[64:-64].view(p.dtype).view(p.shape) for b, p in zip(buffers, expected, strict=True)]
        QUANTIZE_TILES_INTO(x, None, *NOTHING_ELSE, amax, seed, out, text, axes, streams)
        for actual, part, buffer in zip(out, expected, buffers, strict=True):
            assert torch.equal(actual.reshape(-1).view(torch.uint8), part.reshape(-1).view(torch.uint8))
            assert (buffer[:64] == fill).all()
            assert (buffer[-64:] == fill).all()


@triton.jit
def noise_kernel(position, key_low, key_high, out, N: tl.constexpr):
    at = tl.load(position + tl.arange(0, N))
    low, high = (at & 0xFFFFFFFF).to(tl.uint32), (at >> 32).to(tl.uint32)
    tl.store(
        out + tl.arange(0, N), noise_at(low, high, tl.load(key_low).to(tl.uint32), tl.load(key_high).to(tl.uint32))
    )


def test_noise_beyond_32_bits_of_position(triton_on_cpu: Any) -> None:
    positions = torch.tensor([0, 2**32 - 1, 2**32, 2**33 + 5])
    out = torch.empty(4, dtype=torch.int32)
    noise_kernel[(1,)](positions, torch.tensor([SEED & 0xFFFFFFFF]), torch.tensor([SEED >> 32]), out, N=4)
    assert out.tolist() == [_noise(SEED, p) for p in positions.tolist()]


def _mix(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def _noise(key: int, position: int) -> int:
    """2^24 times what `uniform_noise` documents, in Python's integers."""
    mixed = _mix((position ^ key) % 2**32) + (key >> 32) + (position >> 32) * 0x85EBCA6B
    return _mix(mixed % 2**32) >> 8


def test_mistakes(triton_on_cpu: Any) -> None:
    x, amax = torch.randn(4, 32), torch.ones(())
    text = "nvfp4 1x16 nearest"
    with pytest.raises(TypeError, match=r"x must be float32, bfloat16 or float16, got torch\.float64"):
        QUANTIZE_TILES(x.double(), None, *NOTHING_ELSE, amax, None, text, [1], [0])
    with pytest.raises(ValueError, match=r"x must be contiguous, got strides \(1, 4\)"):
        QUANTIZE_TILES(x.reshape(32, 4).T, None, *NOTHING_ELSE, amax, None, text, [1], [0])
    with pytest.raises(ValueError, match=r"spec's block must be one of .*, got 'fp8 row nearest'"):
        tiles.quantize_tiles(Source(x), QuantSpec.parse("fp8 row nearest"), [1], out=[])
    with pytest.raises(ValueError, match="amax must be given for 'nvfp4 1x16 nearest'"):
        QUANTIZE_TILES(x, None, *NOTHING_ELSE, None, None, text, [1], [0])
    with pytest.raises(ValueError, match="seed must not be given for 'nvfp4 1x16 nearest'"):
        QUANTIZE_TILES(x, None, *NOTHING_ELSE, amax, torch.tensor([1]), text, [1], [0])
    with pytest.raises(ValueError, match=r"mean must be 32 float32, .* got 4 torch\.float32"):
        QUANTIZE_TILES(x, torch.zeros(4), *NOTHING_ELSE, amax, None, text, [1], [0])
    with pytest.raises(ValueError, match=r"axes must be one, or the last two of 3, got \[2, 0\]"):
        QUANTIZE_TILES(x[None].contiguous(), None, *NOTHING_ELSE, amax, None, text, [2, 0], [0, 0])


def test_only_the_interpreter_runs_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="x must be on a CUDA device, got cpu"):
        QUANTIZE_TILES(torch.randn(4, 32), None, *NOTHING_ELSE, None, None, "mxfp4 1x32 nearest floor", [1], [0])


@pytest.mark.parametrize(
    ("text", "dtype", "capability"),
    [
        *(("nvfp4 1x16 nearest", "bf16", capability) for capability in CAPABILITIES),
        ("nvfp4 1x16 stochastic round_up", "fp32", 90),
        ("nvfp4 1x16 nearest 4/6-mse", "bf16", 90),
        ("mxfp8 1x32 nearest floor", "bf16", 90),
        ("fp8 1x128 nearest", "bf16", 80),
        ("fp8 1x128 nearest", "bf16", 90),
    ],
)
def test_compiles_without_a_gpu(text: str, dtype: str, capability: int) -> None:
    built = quantize_kernel(text, capability, dtype)
    assert "ld.global.v4.b32" in built.ptx
    assert re.search(r"st\.global\.(v\d\.)?b32", built.ptx)
    assert "st.global.b8" not in built.ptx
    assert built.spilled == 0
    # What would not give the same bits: approximate division, products contracted into sums, flushed subnormals.
    assert not re.search(r"div\.(full|approx)|\.ftz", built.ptx)
    assert re.search(r"mul\.rn\.f32", built.ptx)
    if "fp8" in text:
        assert ("cvt.rn.satfinite.e4m3x2.f32" in built.ptx) == (capability >= 89)


@pytest.mark.parametrize("sizes", [("rows",), ("columns", "packed_columns", "scale_columns")], ids=["row", "column"])
def test_compiles_for_sizes_of_one(sizes: tuple[str, ...]) -> None:
    """Which Triton makes constants of."""
    assert "st.global" in quantize_kernel("nvfp4 1x16 stochastic round_up", 90, "fp32", **dict.fromkeys(sizes, 1)).ptx
