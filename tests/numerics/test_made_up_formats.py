"""A new format is an entry in a table: two that nothing else knows, in plain torch, C++ and Triton, against gfloat."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import value_families
from cpu_quantize import check_on_cpu
from gfloat import Domain, FormatInfo, RoundMode, decode_float, encode_float, round_float
from gfloat.formats import format_info_ocp_e2m1, format_info_ocp_e2m3, format_info_ocp_e8m0
from one_template import Compiler
from packed_operands import RTOL, Packed, assert_near, expected, packed, product
from same_bytes import assert_same
from triton_quantize import check_on_triton

from metis_compile.kernels.cpu import compile, ops
from metis_compile.kernels.gemm.constants import decoding
from metis_compile.kernels.gemm.operand import Operand
from metis_compile.numerics import FORMATS, Format, QuantSpec, decode, encode, fake_quantize, quantize
from metis_compile.numerics.elements import element_codes, element_values
from metis_compile.numerics.number_types import ELEMENTS, SCALES, Element, ScaleType

F32 = np.float32
FP32_MAX = np.finfo(np.float32).max

# 6 bits, one code to a byte; nothing but numbers.
E2M3 = Element(name="e2m3", bits=6, exponent_bits=2, mantissa_bits=3, min_exponent=0, max=7.5)
# No sign; infinity and NaN have the largest exponent, as in IEEE 754.
UE5M3 = Element(
    name="ue5m3", bits=8, exponent_bits=5, mantissa_bits=3, min_exponent=-14, max=61440.0, signed=False,
    infinity=0xF8, nan=0xFF,
)  # fmt: skip
INFO = {
    "e2m1": format_info_ocp_e2m1,
    "e2m3": format_info_ocp_e2m3,
    "e1m2": FormatInfo(
        "e1m2", 4, 3, bias=0, is_signed=True, domain=Domain.Finite, has_nz=True, num_high_nans=0,
        has_subnormals=True, is_twos_complement=False,
    ),
    "e8m0": format_info_ocp_e8m0,
    "ue5m3": FormatInfo(
        "ue5m3", 8, 4, bias=15, is_signed=False, domain=Domain.Extended, has_nz=False, num_high_nans=7,
        has_subnormals=True, is_twos_complement=False,
    ),
}  # fmt: skip
SPECS = [
    "mxfp6 1x32 nearest floor",
    "mxfp6 1x32 nearest even",
    "mxfp6 1x32 stochastic round_up rceil",
    "fp4_ue5m3 1x16 nearest",
    "fp4_ue5m3 16x16 stochastic 17/16",
    "fp4_ue5m3 1x16 nearest 4/6-mse",
    "fp4_ue5m3 1x16 stochastic round_up 4/6-expected",
    "fp4_ue5m3 16x16 eden",
]
SHAPES = [(37, 70), (16, 32), (5, 33), (64, 128)]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ELEMENTS, "e2m3", E2M3)
    monkeypatch.setitem(SCALES, "ue5m3", ScaleType(name="ue5m3", kind="minifloat", dtype=torch.uint8, grid=UE5M3))
    monkeypatch.setitem(FORMATS, "mxfp6", Format(name="mxfp6", element="e2m3", scale="e8m0", blocks=("1x32",)))
    fp4 = Format(name="fp4_ue5m3", element="e2m1", scale="ue5m3", blocks=("1x16", "16x16"), tensor_scale=True)
    monkeypatch.setitem(FORMATS, "fp4_ue5m3", fp4)


def values() -> Iterator[torch.Tensor]:
    for number, (family, shape) in enumerate(zip(value_families.FAMILIES, itertools.cycle(SHAPES), strict=False)):
        yield torch.from_numpy(value_families.draw(family, number, shape))
    for special in (np.nan, -np.nan, np.inf, -np.inf):
        x = torch.randn(20, 66)
        x[3, 33] = special
        yield x


@pytest.mark.parametrize("element", [E2M3, UE5M3, *ELEMENTS.values()], ids=lambda e: e.name)
def test_codes_are_those_of_gfloat(element: Element) -> None:
    from gfloat.formats import format_info_ocp_e4m3, format_info_ocp_e5m2

    info = (INFO | {"e4m3": format_info_ocp_e4m3, "e5m2": format_info_ocp_e5m2})[element.name]
    codes = torch.arange(2**element.bits, dtype=torch.int32)
    decoded = np.array([decode_float(info, int(c)).fval for c in codes], F32)
    np.testing.assert_array_equal(element_values(codes, element).numpy(), decoded)
    finite = np.isfinite(decoded)
    encoded = element_codes(torch.from_numpy(decoded[finite]), element)
    assert encoded.tolist() == codes.numpy()[finite].tolist()
    assert element_codes(torch.tensor([np.nan, -np.nan]), element).tolist() == [element.nan or 0] * 2
    magnitudes = decoded[finite & ~np.signbit(decoded)]
    assert (element.max, element.least) == (magnitudes.max(), magnitudes[magnitudes > 0].min())
    assert element.largest_code == codes.numpy()[finite & (decoded == element.max)].item()


def element_bytes(x: np.ndarray, name: str) -> list[int]:
    """The codes of rounded values, one by one."""
    info = INFO[name]
    return [encode_float(info, round_float(info, float(v), RoundMode.TiesToEven, sat=True)) for v in x]


def by_hand(x: np.ndarray, format: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, one to a byte; scale bytes; values) of finite fp32 rows, rounded to nearest, by gfloat."""
    element, size = ("e2m3", 32) if format == "mxfp6" else ("e2m1", 16)
    codes, scales, values = np.zeros(x.shape, np.uint8), np.zeros((len(x), -(-x.shape[1] // size)), np.uint8), x.copy()
    amax = np.abs(x).max()
    with np.errstate(over="ignore", divide="ignore"):
        enc = F32(1) if amax == 0 else min(F32(61440 * 6) / amax, FP32_MAX)
        dec = F32(1) / enc
        for row, block in np.ndindex(scales.shape):
            where = row, slice(block * size, (block + 1) * size)
            largest = np.abs(x[where]).max()
            if format == "mxfp6":
                byte = 0 if largest == 0 else max(int(np.frexp(largest)[1]) - 1 - 2 + 127, 0)
                scale = F32(decode_float(INFO["e8m0"], byte).fval)
                multiplier, dec = F32(1) / scale, F32(1)
            else:
                (byte,) = element_bytes(np.array([min(largest * (enc * F32(1 / 6)), F32(61440))]), "ue5m3")
                scale = F32(decode_float(INFO["ue5m3"], byte).fval)
                multiplier = min(F32(1) / (scale * dec), FP32_MAX)
            scales[where[0], block] = byte
            codes[where] = element_bytes(x[where] * multiplier, element)
            decoded = np.array([decode_float(INFO[element], int(c)).fval for c in codes[where]], F32)
            values[where] = decoded * scale * dec
    return codes, scales, values


@pytest.mark.parametrize("format", ["mxfp6", "fp4_ue5m3"])
@pytest.mark.parametrize("family", value_families.FAMILIES)
def test_plain_torch_gives_the_bytes_of_gfloat(format: str, family: str) -> None:
    x = value_families.draw(family, 3, (7, 70))
    codes, scales, expected = by_hand(x, format)
    made = quantize(torch.from_numpy(x), format)
    if format == "fp4_ue5m3":
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    np.testing.assert_array_equal(made.codes.numpy(), codes)
    assert made.block_scales is not None
    np.testing.assert_array_equal(made.block_scales.view(torch.uint8).numpy(), scales)
    assert made.dequantize().numpy().tobytes() == expected.tobytes()
    assert fake_quantize(torch.from_numpy(x), made.spec, -1).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("text", SPECS)
def test_cpp_gives_the_bytes_of_plain_torch(text: str) -> None:
    spec = QuantSpec.parse(text)
    for number, x in enumerate(values()):
        check_on_cpu(x, spec, -1 - number % 2)


@pytest.mark.parametrize("format", ["mxfp6", "mxfp8", "mxfp8_e5m2", "fp4_ue5m3"])
def test_cpp_decodes_every_code_and_every_scale(format: str) -> None:
    """Also those that nothing encodes to."""
    spec = QuantSpec.make(format)
    assert spec.block_shape is not None
    every = torch.arange(2**spec.element.bits, dtype=torch.int32).to(torch.uint8)
    codes = every.expand(256, len(every)).contiguous()
    codes = codes[:, ::2] | codes[:, 1::2] << 4 if spec.element.codes_per_byte == 2 else codes
    scales = (
        torch.arange(256, dtype=torch.int32).to(torch.uint8)[:, None].expand(256, len(every) // spec.block_shape[1])
    )
    parts = [
        codes,
        scales.contiguous().view(spec.fmt.scale_dtype),
        *[torch.ones(()) for _ in range(spec.fmt.tensor_scale)],
    ]
    wanted = decode(parts, spec, 1, len(every))
    assert_same(ops.CPU_DECODE(parts, str(spec), 1, len(every), False), wanted, "decoded")


@pytest.mark.parametrize("text", SPECS)
def test_triton_gives_the_bytes_of_plain_torch(triton_on_cpu: Any, text: str) -> None:
    spec = QuantSpec.parse(text)
    for number, x in enumerate(values()):
        check_on_triton(x, spec, [(-1, -2), (-2, -1), (-1,), (-2,)][number % 4], str(number))


@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize("transposed", [False, True], ids=["fprop", "wgrad"])
@pytest.mark.parametrize("text", [SPECS[0], SPECS[3]])
def test_products(
    triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, text: str, transposed: bool, capability: int
) -> None:
    """By the template, also where the GPU has instructions for other formats, and by plain torch."""
    a, b = packed((37, 75), text, transposed=transposed), packed((21, 75), text, transposed=transposed)
    assert_near(product(a, b), expected(a, b))
    result, code = Compiler(triton_on_cpu, monkeypatch)(capability, product, a, b)
    assert_near(result, expected(a, b))
    assert "dot_scaled" not in code


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("text", [SPECS[0], SPECS[3]])
def test_the_decoding_kernel(triton_on_cpu: Any, text: str, transposed: bool) -> None:
    from metis_compile.kernels.gemm.decode import decode_to_bfloat16

    a = packed((37, 75), text, transposed=transposed)
    wanted = decode([*a.parts[:2], *[torch.ones(()) for _ in a.parts[2:]]], QuantSpec.parse(text), a.axis, a.length)
    assert torch.equal(decode_to_bfloat16(a.parts, a.operand, a.length).float(), wanted)


def test_every_scale_of_a_product(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2^-17 * 0.5 to 61440 * 6, each alone in its sum: none overflows on the way."""
    scales = torch.arange(1, UE5M3.largest_code + 1, dtype=torch.int32).to(torch.uint8)[:, None]
    codes = torch.full((len(scales), 8), 0x77, dtype=torch.uint8)
    codes[: len(scales) // 2] = 0x11
    a = Packed([codes, scales, torch.ones(())], SPECS[3], 1, 16, 1)
    b = Packed(encode(torch.eye(3, 16), QuantSpec.parse(SPECS[3]), 1), SPECS[3], 1, 16, 1)
    result, _ = Compiler(triton_on_cpu, monkeypatch)(90, product, a, b)
    torch.testing.assert_close(result, expected(a, b), rtol=RTOL, atol=0)


def test_what_is_stored() -> None:
    assert QuantSpec.make("mxfp6").bits_per_element == 8.25  # of which 6 are used
    assert QuantSpec.make("fp4_ue5m3").bits_per_element == 4.5
    assert QuantSpec.make("fp4_ue5m3").tensor_target == 61440 * 6
    assert QuantSpec.make("fp4_ue5m3", None, "eden").tensor_target == 2**15 * 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"element": "e2m4"}, "element of format 'new' must be one of .*'e2m1'.*, got 'e2m4'"),
        ({"scale": "ue8m0"}, "scale of format 'new' must be one of .*'e8m0'.*, got 'ue8m0'"),
        ({"blocks": ("1x24",)}, "block must be .* got '1x24'"),
        ({"blocks": ("32x16",)}, "block must be .* got '32x16'"),
        ({"blocks": ("row",)}, "blocks of format 'new' must have a size under e8m0 scales"),
        ({"tensor_scale": True}, "tensor_scale of format 'new' must be True for minifloat scales"),
    ],
)
def test_unknown_names_are_errors(changed: dict[str, Any], message: str) -> None:
    given = {"name": "new", "element": "e2m1", "scale": "e8m0", "blocks": ("1x32",), **changed}
    with pytest.raises(ValueError, match=message):
        Format(**given)


def test_elements_and_scales_that_make_no_sense_are_errors() -> None:
    with pytest.raises(ValueError, match="bits of 'e' must be at most 8"):
        Element(name="e", bits=6, exponent_bits=3, mantissa_bits=3, min_exponent=0, max=7.5)
    with pytest.raises(ValueError, match=r"max of 'e' must have a code of 5 bits, got 7.25"):
        Element(name="e", bits=6, exponent_bits=2, mantissa_bits=3, min_exponent=0, max=7.25)
    with pytest.raises(ValueError, match=r"max of 'e' must have a code of 3 bits, got 8.0"):
        Element(name="e", bits=4, exponent_bits=2, mantissa_bits=1, min_exponent=0, max=8.0)
    with pytest.raises(ValueError, match=r"kind of scale 's' must be one of .*, got 'integer'"):
        ScaleType(name="s", kind="integer", dtype=torch.uint8)
    with pytest.raises(ValueError, match="grid of scale 's' must be given for 'minifloat' alone"):
        ScaleType(name="s", kind="minifloat", dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"SCALE": "ue8m0"}, "ue8m0"),
        ({"BLOCKS": "hexagon"}, "hexagon"),
        ({"BLOCK": 24}, "multiple of a vector"),
        ({"SELECT": "median"}, "median"),
        ({"CODES_PER_BYTE": 4}, "two to a byte"),
    ],
)
def test_cpp_does_not_build_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], named: str
) -> None:
    constants = compile._constants
    monkeypatch.setattr(compile, "_constants", lambda spec: constants(spec) | changed)
    with pytest.raises(compile.KernelBuildError, match=named):
        compile.load.__wrapped__(
            "decode" if "SELECT" not in changed else "quantize", QuantSpec.make("mxfp6"), torch.float32
        )


@pytest.mark.parametrize(
    ("format", "changed", "named"),
    [
        ("mxfp6", {"SCALE": "ue8m0"}, "SCALE must be"),
        ("mxfp6", {"INSTRUCTION": "e2m3"}, "INSTRUCTION must be"),
        ("mxfp6", {"ROUNDING": "up"}, "ROUNDING must be"),
        ("fp4_ue5m3", {"SELECT": "median"}, "four-over-six chooses by"),
    ],
)
def test_triton_does_not_compile_what_it_does_not_know(
    triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, format: str, changed: dict[str, Any], named: str
) -> None:
    from metis_compile.kernels.quantize import tiles

    constants = tiles.constants_of
    monkeypatch.setattr(tiles, "constants_of", lambda *given: constants(*given) | changed)
    with pytest.raises(Exception, match=named):
        check_on_triton(torch.randn(32, 32), QuantSpec.make(format), (-1,))


@pytest.mark.parametrize("language", ["plain torch", "decode", "C++", "Triton", "template", "decoding kernel"])
def test_a_kind_of_scale_that_nothing_knows(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    from metis_compile.kernels.gemm.decode import decode_to_bfloat16

    x, spec = torch.randn(32, 32), QuantSpec.make("fp4_ue5m3")
    operand = packed((32, 32), str(spec))
    scale = ScaleType(name="ue5m3", kind="minifloat", dtype=torch.uint8, grid=UE5M3)
    object.__setattr__(scale, "kind", "integer")  # as a later version may have it
    monkeypatch.setitem(SCALES, "ue5m3", scale)
    called = {
        "plain torch": lambda: fake_quantize(x, spec, 1),
        "decode": lambda: decode(operand.parts, spec, 1, 32),
        "C++": lambda: compile.load.__wrapped__("quantize", spec, torch.float32),
        "Triton": lambda: check_on_triton(x, spec, (-1,)),
        "template": lambda: Compiler(triton_on_cpu, monkeypatch)(90, product, operand, operand),
        "decoding kernel": lambda: decode_to_bfloat16(operand.parts, operand.operand, 32),
    }
    with pytest.raises(Exception, match=r"integer|SCALE must be"):
        called[language]()


@pytest.mark.parametrize(
    "element",
    [
        Element(name="e3m1u", bits=4, exponent_bits=3, mantissa_bits=1, min_exponent=0, max=64.0, signed=False),
        Element(name="e2m1n", bits=4, exponent_bits=2, mantissa_bits=1, min_exponent=0, max=4.0, nan=7),
        Element(name="e1m4", bits=6, exponent_bits=1, mantissa_bits=4, min_exponent=0, max=1.9375),
    ],
    ids=lambda e: e.name,
)
def test_elements_that_no_template_decodes(monkeypatch: pytest.MonkeyPatch, element: Element) -> None:
    monkeypatch.setitem(ELEMENTS, "new", element)
    monkeypatch.setitem(FORMATS, "new", Format(name="new", element="new", scale="e8m0", blocks=("1x32",)))
    operand = Operand(spec=QuantSpec.make("new"), axis=-1, contracted=-1)
    with pytest.raises(ValueError, match=f"metis::gemm decodes .* got '{element.name}'"):
        decoding(operand)


def test_a_zero_tensor_and_a_short_block() -> None:
    for format in ("mxfp6", "fp4_ue5m3"):
        assert torch.equal(quantize(torch.zeros(3, 5), format).dequantize(), torch.zeros(3, 5))
        parts = encode(torch.ones(3, 5), QuantSpec.make(format), 0)
        assert parts[0].shape == ((3, 5) if format == "mxfp6" else (2, 5))
