"""The Triton quantize kernel gives, byte for byte, what the plain-torch numerics give."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
import value_families
from cross_compile import CAPABILITIES
from long_tail import each_once, sampled
from quantize_kernel import quantize_kernel
from refusals import assert_refused
from specs import REPEATED
from specs import TILED as SPECS
from triton_quantize import NOTHING_ELSE, SEED, check_on_triton, quantized

from metis_compile.kernels.quantize.ops import QUANTIZE_TILES, QUANTIZE_TILES_INTO, TILES_AMAX
from metis_compile.numerics import QuantSpec

triton = pytest.importorskip("triton")
tl = triton.language

from metis_compile.kernels.quantize.noise import noise_at  # noqa: E402

SHAPES = [(37, 70), (16, 32), (1, 33), (130, 7), (3, 20, 50), (64, 128), (2, 3, 17, 40)]


SAMPLED = sampled(SPECS, [text for text in SPECS if text not in REPEATED])

# Below 8.9 FP8 is rounded by other code; everything else is the same.
WITHOUT_FP8 = [(text, 80) for text in SPECS if "fp4" not in text and "nearest" in text]


@pytest.mark.parametrize(
    ("text", "capability"),
    sampled([*((text, 90) for text in SPECS), *WITHOUT_FP8], lambda text, capability: text not in REPEATED),
)
def test_bytes_are_those_of_the_numerics(triton_on_cpu: Any, long: bool, text: str, capability: int) -> None:
    """Of every third family, another third for the next spec; of all of them in the long tail."""
    triton_on_cpu.capability = capability
    spec = QuantSpec.parse(text)
    for number, (family, shape) in enumerate(zip(value_families.FAMILIES, itertools.cycle(SHAPES), strict=False)):
        if not long and (number + SPECS.index(text)) % 3 != 0:
            continue
        x = torch.from_numpy(value_families.draw(family, number, shape))
        check_on_triton(x, spec, [(-1, -2), (-2, -1), (-1,), (-2,)][number % 4], f"{family} {shape}")


@pytest.mark.parametrize("text", ["nvfp4 1x16 stochastic round_up", "mxfp8 1x32 nearest floor"])
def test_any_axis(triton_on_cpu: Any, text: str) -> None:
    x = torch.randn(19, 3, 21)
    check_on_triton(x, QuantSpec.parse(text), [0])
    check_on_triton(torch.randn(35), QuantSpec.parse(text), [0])


@pytest.mark.parametrize(
    ("dtype", "text"), each_once([torch.bfloat16, torch.float16], ["nvfp4 1x16 nearest", "fp8 1x128 nearest"])
)
def test_16_bit_input(triton_on_cpu: Any, text: str, dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()]
    x = finite[torch.randperm(finite.numel())][:63360].reshape(40, 1584)
    check_on_triton(x, QuantSpec.parse(text), (1, 0))


@pytest.mark.parametrize("text", SAMPLED)
def test_what_is_not_finite(triton_on_cpu: Any, text: str) -> None:
    for special in (math.nan, -math.nan, math.inf, -math.inf):
        x = torch.randn(40, 65)
        x[7, 33] = special
        check_on_triton(x, QuantSpec.parse(text), (1, 0), str(special))


@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "nvfp4 16x16 nearest", "fp8 1x128 nearest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_subtracted(triton_on_cpu: Any, text: str, dtype: torch.dtype) -> None:
    x = (torch.randn(37, 70) + 10).to(dtype)
    check_on_triton(x, QuantSpec.parse(text), (1, 0), mean=torch.randn(1, 70) + 10)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 4)])
@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "mxfp8 1x32 nearest floor"])
def test_nothing(triton_on_cpu: Any, text: str, shape: tuple[int, ...]) -> None:
    check_on_triton(torch.empty(shape), QuantSpec.parse(text), (-1, -2))


@pytest.mark.parametrize("text", SAMPLED)
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


META = torch.ones((), device="meta")
DRAWN = "nvfp4 16x16 stochastic round_up"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.ones(4, 32).double()}, TypeError, "x must be float32, bfloat16 or float16, got float64"),
        ({"x": torch.ones(())}, IndexError, "x must have at least one dimension to have axis 1, got none"),
        ({"spec": "fp8 row nearest"}, ValueError, "spec's block must be one of 1x16, .*, got 'fp8 row nearest'"),
        ({"spec": "nvfp5 1x16 nearest"}, ValueError, "spec must be the text of a QuantSpec, got 'nvfp5 1x16 nearest'"),
        ({"mean": torch.zeros(4)}, ValueError, r"mean must have .* each column of x \[4, 32\], got shape \[4\]"),
        ({"mean": torch.zeros(32).half()}, TypeError, "mean must be float32, got float16"),
        ({"mean": torch.zeros(32, device="meta")}, ValueError, "mean must be on cpu like x, got meta"),
        ({"left": torch.zeros(4, 2, device="meta")}, ValueError, "left must be on cpu like x, got meta"),
        ({"right": torch.zeros(2, 32, device="meta")}, ValueError, "right must be on cpu like x, got meta"),
        ({"signs": torch.ones(16, device="meta")}, ValueError, "signs must be on cpu like x, got meta"),
        ({"signs": torch.ones(16).double()}, TypeError, "signs must be float32, got float64"),
        ({"amax": None}, ValueError, "amax must be given for 'nvfp4 1x16 nearest', got None"),
        (
            {"spec": "mxfp4 1x32 nearest floor"},
            ValueError,
            r"amax must be None for 'mxfp4 1x32 nearest floor', got \[\]",
        ),
        ({"amax": torch.ones(7)}, ValueError, r"amax must have shape \[\], got \[7\]"),
        ({"amax": torch.ones(()).double()}, TypeError, "amax must be float32, got float64"),
        ({"amax": torch.ones(()).int()}, TypeError, "amax must be float32, got int32"),
        ({"amax": META}, ValueError, "amax must be on cpu like x, got meta"),
        ({"seed": torch.tensor([1])}, ValueError, r"seed must be None for 'nvfp4 1x16 nearest', got int64 \[1\]"),
        ({"spec": DRAWN}, ValueError, f"seed must be given for '{DRAWN}', got None"),
        ({"spec": DRAWN, "seed": torch.ones(1)}, TypeError, "seed must be int64, got float32"),
        ({"spec": DRAWN, "seed": torch.ones(2).long()}, ValueError, r"seed must have one element, got shape \[2\]"),
        ({"spec": DRAWN, "seed": META.long()}, ValueError, "seed must be on cpu like x, got meta"),
        ({"axes": [2]}, IndexError, "axis must be between -2 and 1 for 2 dimensions, got 2"),
        ({"axes": []}, ValueError, r"axes must be one, or the last two of 2, got \[\]"),
        ({"axes": [1, 1]}, ValueError, r"axes must be one, or the last two of 2, got \[1, 1\]"),
        (
            {"x": torch.ones(2, 4, 32), "axes": [2, 0]},
            ValueError,
            r"axes must be one, or the last two of 3, got \[2, 0\]",
        ),
        (
            {"x": torch.ones(2, 4, 32), "mean": torch.ones(32), "axes": [0]},
            ValueError,
            r"axes must be among the last two with a mean, got \[0\]",
        ),
        ({"axes": [1, 0]}, ValueError, r"streams must be one for each of axes \[1, 0\], got \[0\]"),
        ({"streams": []}, ValueError, r"streams must be one for each of axes \[1\], got \[\]"),
        ({"streams": [-1]}, ValueError, r"each of streams must be at least 0 and less than 2\^31, got -1"),
        (
            {"spec": DRAWN, "seed": torch.tensor([1]), "axes": [1, 0], "streams": [1, 2]},
            ValueError,
            r"streams must be equal for 16x16 blocks, got \[1, 2\]",
        ),
    ],
)
def test_mistakes(triton_on_cpu: Any, changed: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"x": torch.ones(4, 32), **dict.fromkeys(("mean", "left", "right", "signs")), "amax": torch.ones(())}
    given |= {"seed": None, "spec": "nvfp4 1x16 nearest", "axes": [1], "streams": [0]}
    QUANTIZE_TILES(*given.values())
    arguments = given | changed
    assert_refused(QUANTIZE_TILES, list(arguments.values()), error, f"metis::quantize_tiles: {message}")
    how = [arguments.pop(name) for name in ("spec", "axes", "streams")]
    into = [*arguments.values(), [], *how]
    assert_refused(QUANTIZE_TILES_INTO, into, error, f"metis::quantize_tiles_into: {message}")
    source = [arguments[name] for name in ("x", "mean", "left", "right", "signs")]
    if re.match("x must|mean must have|mean must be [fo]|left|right|signs", message):
        assert_refused(TILES_AMAX, [*source, 1], error, f"metis::tiles_amax: {message}")


@pytest.mark.parametrize(
    ("place", "changed", "error", "message"),
    [
        (0, None, ValueError, r"out must be 3 tensors for 'nvfp4 1x16 nearest' and axes \[1\], got 2"),
        (0, torch.ones(4, 16), TypeError, r"out\[0\] must be uint8, got float32"),
        (1, torch.ones(4, 3).to(torch.float8_e4m3fn), ValueError, r"out\[1\] must have shape \[4, 2\], got \[4, 3\]"),
        (2, META, ValueError, r"out\[2\] must be on cpu like x, got meta"),
    ],
)
def test_mistakes_in_what_is_written(
    triton_on_cpu: Any, place: int, changed: Any, error: type[Exception], message: str
) -> None:
    given, how = [torch.ones(4, 32), None, *NOTHING_ELSE, torch.ones(()), None], ["nvfp4 1x16 nearest", [1], [0]]
    out = QUANTIZE_TILES(*given, *how)
    out[place : place + 1] = [] if changed is None else [changed]
    assert_refused(QUANTIZE_TILES_INTO, [*given, out, *how], error, f"metis::quantize_tiles_into: {message}")


def test_strides_are_refused_where_it_runs(triton_on_cpu: Any) -> None:
    """While tracing they are not those that it will have."""
    across, how = torch.ones(32, 4).T, ["nvfp4 1x16 nearest", [1], [0]]
    given = [across.contiguous(), None, *NOTHING_ELSE, torch.ones(()), None]
    out = QUANTIZE_TILES(*given, *how)
    with pytest.raises(
        ValueError, match=r"metis::quantize_tiles: x must be contiguous, got strides \(1, 4\) for shape"
    ):
        QUANTIZE_TILES(across, *given[1:], *how)
    with pytest.raises(ValueError, match=r"metis::tiles_amax: x must be contiguous, got strides \(1, 4\) for shape"):
        TILES_AMAX(across, *given[1:5], 1)
    out[0] = out[0].T.contiguous().T
    with pytest.raises(
        ValueError, match=r"metis::quantize_tiles_into: out\[0\] must be contiguous, got strides \(1, 4\)"
    ):
        QUANTIZE_TILES_INTO(*given, out, *how)


def test_only_the_interpreter_runs_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="metis::quantize_tiles: x must be on a CUDA device, got cpu"):
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
