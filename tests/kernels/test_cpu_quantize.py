"""The C++ kernels give, byte for byte, what the plain-torch numerics give."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import specs
import torch
import value_families
from cpu_quantize import all_parts, check_on_cpu, given_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from long_tail import each_once, sampled
from same_bytes import assert_same
from specs import ALL
from torch import Tensor

from metis_compile.kernels.cpu import compile, launch, ops
from metis_compile.numerics import QuantSpec, encode, uniform_noise
from metis_compile.numerics.blocks import BlockLayout
from metis_compile.numerics.quantize import scale_values
from metis_compile.numerics.scales import nvfp4_ideal_scale, nvfp4_rounded_scale

# Each is a library to build.
FOUR_OVER_SIX = [str(spec) for spec in ALL if spec.select]
EDEN = [str(spec) for spec in ALL if spec.rounding == "eden"]
SPECS = list(dict.fromkeys([*FOUR_OVER_SIX, *EDEN, *specs.SPECS]))
# `make test` leaves out what only multiplies a choice of scales by a guard, and what others show
FEWER = [text for text in SPECS if text in {*specs.SPECS, *EDEN} - specs.REPEATED]
SAMPLED = sampled(SPECS, FEWER)
# families in which either choice of a scale is taken, by most blocks or on an edge
TELLING = ["normal", "ties", "lognormal"]
# also built for 16-bit input
NARROW_SPECS = ["nvfp4 1x16 nearest", "nvfp4 1x16 nearest 4/6-mse", "nvfp4 1x16 eden", "fp8 row nearest"]
NARROW = [torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "transposed", "every second", "expanded", "offset"]


@pytest.fixture(scope="module", autouse=True)
def libraries(request: pytest.FixtureRequest) -> None:
    """Builds what the tests need, two at a time: the compiler is a process of its own."""
    wanted: list[tuple[str, Any, torch.dtype]] = [("tensor_scale", None, dtype) for dtype in compile.INPUTS]
    long = request.config.option.long != "not"
    for text in SPECS if long else FEWER:
        wanted += [("quantize", QuantSpec.parse(text), torch.float32), ("decode", QuantSpec.parse(text), torch.float32)]
    for text in NARROW_SPECS if long else ():
        wanted += [("quantize", QuantSpec.parse(text), dtype) for dtype in NARROW]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda args: compile.load(*args), wanted))


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x's values and shape, in other strides."""
    if layout == "transposed" and x.dim() > 1:
        return x.mT.contiguous().mT
    if layout == "every second":
        return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]
    if layout == "expanded":
        return x[:1].expand(x.shape)
    if layout == "offset":
        return torch.cat([torch.full_like(x, torch.nan), x])[x.shape[0] :]
    return x


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(FEWER),
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
    st.integers(0, 2),
    st.sampled_from(list(value_families.FAMILIES)),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**20),
)
def test_bytes_are_those_of_the_numerics(
    text: str, shape: list[int], axis: int, family: str, layout: str, seed: int
) -> None:
    spec = QuantSpec.parse(text)
    if spec.block in ("16x16", "128x128"):
        shape = [*shape, 33][-max(2, len(shape)) :]
        axis = -1 - axis % 2
    x = torch.from_numpy(value_families.draw(family, seed, tuple(shape)))
    check_on_cpu(laid_out(x, layout), spec, axis if axis < 0 else axis % len(shape))


@pytest.mark.parametrize(
    ("text", "family"),
    sampled(
        itertools.product(FOUR_OVER_SIX, value_families.FAMILIES),
        lambda text, family: text in FEWER and family in TELLING,
    ),
)
def test_every_choice_between_6_and_4(text: str, family: str) -> None:
    spec, chosen = QuantSpec.parse(text), set()
    for seed, shape in enumerate([(16, 256), (32, 288), (1, 1), (37, 41), (3, 17, 275)]):
        x = torch.from_numpy(value_families.draw(family, seed, shape))
        for axis in range(-min(len(shape), 2 if spec.orientation_free else 3), 0):
            check_on_cpu(x, spec, axis)
            noise = torch.zeros(shape) if spec.stochastic else None
            scales = scale_values(encode(x, spec, axis, noise), spec)
            chosen |= set((scales != block_scales_to_six(x, spec, axis)).flatten().tolist())
    assert chosen == {False, True} or family != "normal"


@pytest.mark.parametrize(("text", "family"), each_once(EDEN, list(value_families.FAMILIES)))
def test_every_corrected_scale(text: str, family: str) -> None:
    spec = QuantSpec.parse(text)
    for seed, shape in enumerate([(16, 256), (32, 288), (1, 1), (37, 41), (3, 17, 275)]):
        x = torch.from_numpy(value_families.draw(family, seed, shape))
        for axis in range(-min(len(shape), 2 if spec.orientation_free else 3), 0):
            for stream in (0, 9):
                check_on_cpu(x, spec, axis, stream)


def block_scales_to_six(x: Tensor, spec: QuantSpec, axis: int) -> Tensor:
    """The block scales that four-over-six would have if it always put the largest element at 6."""
    ideal, dec = nvfp4_ideal_scale(BlockLayout.of(spec, x.dim(), axis).amax(x), spec)
    return nvfp4_rounded_scale(ideal, dec, spec).scale


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("text", SAMPLED)
def test_whole_groups_of_blocks_and_threads(text: str, axis: int) -> None:
    x = torch.randn(256, 512) * torch.exp2(torch.randint(-9, 9, (256, 512)))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        check_on_cpu(x, QuantSpec.parse(text), axis)
    check_on_cpu(x[:, :499], QuantSpec.parse(text), axis)


@pytest.mark.parametrize(("text", "dtype"), each_once(NARROW_SPECS, NARROW))
def test_16_bit_input(text: str, dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()]
    x = finite[torch.randperm(finite.numel())][:63360].reshape(40, 1584)
    for axis in (0, 1):
        check_on_cpu(x, QuantSpec.parse(text), axis)


@pytest.mark.parametrize("special", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("text", SAMPLED)
def test_what_is_not_finite(text: str, special: float) -> None:
    x = torch.randn(40, 65)
    x[7, 33] = special
    for axis in (0, 1):
        check_on_cpu(x, QuantSpec.parse(text), axis)
        given = given_of(x, QuantSpec.parse(text), torch.tensor([5]) if QuantSpec.parse(text).needs_noise else None)
        assert not ops.CPU_VALUES(x, given, text, axis, 0, False)[7, 33].isfinite()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 4)])
@pytest.mark.parametrize("text", [s for s in FEWER if "16x16" not in s and "128x128" not in s])
def test_nothing(text: str, shape: tuple[int, ...]) -> None:
    for axis in range(len(shape)):
        check_on_cpu(torch.empty(shape), QuantSpec.parse(text), axis)


def guarded(shape: tuple[int, ...], dtype: torch.dtype, fill: int) -> tuple[Tensor, Tensor]:
    """A contiguous tensor between two runs of 64 bytes, every byte `fill`; and the whole buffer."""
    size = math.prod(shape) * dtype.itemsize
    buffer = torch.full((size + 128,), fill, dtype=torch.uint8)
    return buffer[64 : 64 + size].view(dtype).view(shape), buffer


@pytest.mark.parametrize("shape", [(37, 75), (64, 256)])
@pytest.mark.parametrize("text", SAMPLED)
def test_every_element_is_written_and_nothing_else(text: str, shape: tuple[int, ...]) -> None:
    spec = QuantSpec.parse(text)
    x = torch.randn(shape)
    seed = torch.tensor([11]) if spec.needs_noise else None
    given = given_of(x, spec, seed)
    for axis in (0, 1):
        parts = all_parts(x, spec, axis, seed, 1)
        values = ops.CPU_VALUES(x, given, text, axis, 1, False)
        scales_dtype = spec.fmt.scale_dtype
        for fill in (0x00, 0xAA, 0xFF):
            out, buffer = guarded(shape, torch.float32, fill)
            codes, codes_buffer = guarded(tuple(parts[0].shape), torch.uint8, fill)
            launch.values(x, *given, spec=text, axis=axis, stream=1, out=out)
            scales, scales_buffer = None, None
            if spec.block != "tensor":
                scales, scales_buffer = guarded(tuple(parts[1].shape), scales_dtype, fill)
            launch.parts(x, *given, spec=text, axis=axis, stream=1, codes=codes, block_scales=scales)
            assert_same(out, values, "values")
            assert_same(codes, parts[0], "codes")
            if scales is not None:
                assert_same(scales, parts[1], "scales")
            decoded, decoded_buffer = guarded(shape, torch.float32, fill)
            launch.decode(*parts, spec=text, axis=axis, out=decoded)
            assert_same(decoded, values, "decoded")
            for each in (buffer, codes_buffer, scales_buffer, decoded_buffer):
                if each is not None:
                    assert (each[:64] == fill).all()
                    assert (each[-64:] == fill).all()


@pytest.mark.parametrize("text", ["nvfp4 1x16 stochastic round_up", "nvfp4 1x16 eden"])
def test_streams_and_seeds_differ(text: str) -> None:
    x = torch.randn(32, 64)
    scale = given_of(x, QuantSpec.parse(text), None)
    drawn = [
        ops.CPU_VALUES(x, [*scale, torch.tensor([seed])], text, 1, stream, False)
        for seed, stream in ((1, 0), (1, 1), (2, 0), (1, 0))
    ]
    assert torch.equal(drawn[0], drawn[3])
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:3])


def test_stochastic_rounding_rises_where_the_noise_just_reaches() -> None:
    text, seed = "fp8_e5m2 tensor stochastic none", torch.tensor([21])
    x = 2.0**-16 * (1 - uniform_noise(seed, 3, (64, 64)))  # of the grid's first step: frac + noise is 1
    x[0, 0] = 57344.0  # the largest number of E5M2, so that the scale is 1
    check_on_cpu(x, QuantSpec.parse(text), 1)
    values = ops.CPU_VALUES(x, given_of(x, QuantSpec.parse(text), seed), text, 1, 3, False)
    assert (values.flatten()[1:] == 2.0**-16).all()


def test_noise_beyond_32_bits_of_position() -> None:
    text = compile.inlined("noise.h") + (
        'extern "C" void noise(uint64_t key, uint64_t position, float* p) {\n'
        "  for (int i = 0; i < 16; i += LANES) write(p + i, noise_at(key, position + i));\n"
        "}\n"
    )
    library = compile.CppCodeCache.load(text)
    key = 0x9234_5678_1ABC_DEF0
    for start in (0, *(2**32 - lanes + off for lanes in (8, 16) for off in (-1, 0, 1)), 2**32 - 1, 2**32, 2**33 + 5):
        out = torch.empty(16)
        library.noise(
            compile.ctypes.c_uint64(key), compile.ctypes.c_uint64(start), compile.ctypes.c_void_p(out.data_ptr())
        )
        assert out.tolist() == [_noise(key, start + i) for i in range(16)], start


def _mix(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def _noise(key: int, position: int) -> float:
    """What `uniform_noise` documents, in Python's integers."""
    mixed = _mix((position ^ key) % 2**32) + (key >> 32) + (position >> 32) * 0x85EBCA6B
    return (_mix(mixed % 2**32) >> 8) * 2.0**-24


def test_a_failing_build_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "source", lambda *_: "int broken( { return 1; }\n")
    with pytest.raises(compile.KernelBuildError, match=r"mxfp4 1x32 nearest even(.|\n)*error:(.|\n)*cpu_kernels"):
        compile.load("quantize", QuantSpec.parse("mxfp4 1x32 nearest even"), torch.bfloat16)
