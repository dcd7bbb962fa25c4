"""The product without a template: what it decodes to, and that it multiplies any two operands."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cross_compile import cross_compile
from long_tail import each_once, sampled
from packed_operands import SPECS, Packed, assert_near, expected, packed
from torch import Tensor

from metis_compile.kernels.gemm.aten_fallback import product
from metis_compile.kernels.gemm.constants import decoding
from metis_compile.numerics import QuantSpec, decode

EXACT = [name for name, spec in SPECS.items() if QuantSpec.parse(spec).fmt.scale != "fp32"]


def plain(a: Packed, b: Packed, tails: tuple[Tensor, ...] = ()) -> Tensor:
    x, y = a.values, b.values
    out = torch.full((*x.shape[:-1], y.shape[-2]), torch.nan)
    sides = {"a": (a.spec, a.axis, a.contract), "b": (b.spec, b.axis, b.contract)}
    result = product(*a.parts, *b.parts, *tails, **sides, out=out)  # type: ignore[arg-type]
    assert result is out
    return out


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_formats(name: str, transposed: bool) -> None:
    a, b = packed((37, 75), SPECS[name], transposed=transposed), packed((21, 75), SPECS[name])
    assert_near(plain(a, b), expected(a, b))
    assert_near(plain(b, a), expected(b, a))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("nvfp4", {"transposed": True}), ("nvfp4", {"transposed": True})),  # wgrad
        (("nvfp4", {}), ("nvfp4-2d", {"transposed": True, "across": True})),  # dgrad of a weight packed for fprop
        (("nvfp4-2d", {"transposed": True, "across": True}), ("nvfp4-2d", {"across": True})),
        (("fp8-row", {"transposed": True}), ("fp8-128-2d", {"transposed": True, "across": True})),
        (("fp8-128", {"transposed": True}), ("fp8_e5m2", {"across": True})),
        (("mxfp4", {"transposed": True}), ("mxfp8_e5m2", {})),
    ],
    ids=lambda side: "-".join([side[0], *side[1]]),
)
def test_layouts_and_mixed_formats(left: Any, right: Any) -> None:
    a, b = packed((37, 75), SPECS[left[0]], **left[1]), packed((21, 75), SPECS[right[0]], **right[1])
    assert_near(plain(a, b), expected(a, b))


@pytest.mark.parametrize("name", ["nvfp4", "fp8-row"])
def test_batches_and_tails(name: str) -> None:
    a, b = packed((3, 19, 50), SPECS[name], transposed=True), packed((3, 5, 50), SPECS[name])
    assert_near(plain(a, b), expected(a, b))
    a, b = packed((37, 75), SPECS[name]), packed((21, 75), SPECS[name])
    tails = (torch.randn(37, 5).bfloat16(), torch.randn(5, 21), torch.randn(19, 37).T, torch.randn(19, 21))
    assert_near(plain(a, b, tails), expected(a, b, tails))


@pytest.mark.parametrize(
    ("name", "transposed", "shape"),
    sampled(
        itertools.product(EXACT, [False, True], [(1, 1), (37, 75), (3, 70, 261)]),
        # of each format a matrix and a batch, one of them transposed
        lambda name, transposed, shape: shape != (1, 1) and transposed == ((len(shape) + EXACT.index(name)) % 2 == 0),
    ),
)
def test_the_decoding_kernel(triton_on_cpu: Any, shape: tuple[int, ...], transposed: bool, name: str) -> None:
    """Bit for bit what decoding gives, and that is exact in bfloat16."""
    from metis_compile.kernels.gemm.decode import decode_to_bfloat16

    a = packed(shape, SPECS[name], transposed=transposed)
    unscaled = [*a.parts[:2], *[torch.ones(()) for _ in a.parts[2:]]]
    wanted = decode(unscaled, QuantSpec.parse(a.spec), a.axis, a.length)
    actual = decode_to_bfloat16(a.parts, a.operand, a.length)
    assert torch.equal(wanted, wanted.bfloat16().float())
    assert torch.equal(actual.float(), wanted)


@pytest.mark.parametrize(("name", "capability"), each_once(EXACT, [80, 90, 100, 120]))
def test_the_decoding_kernel_compiles_for_gpus(name: str, capability: int) -> None:
    pytest.importorskip("triton")
    from metis_compile.kernels.gemm import decode as module

    operand = packed((2, 2), SPECS[name]).operand
    across, along = operand.block
    fp4 = operand.spec.element.codes_per_byte == 2
    signature = {"codes": "*u8", "scales": "*u8", "out": "*bf16", "rows": "i32", "columns": "i32"}
    for rows in (False, True) if fp4 else (False,):
        constants = {
            "SCALE": operand.spec.fmt.scale_type.kind,
            **{name: value for name, value in decoding(operand).items() if name != "DOWN"},
            "PACKED_ROWS": fp4 and rows,
            "PACKED_COLUMNS": fp4 and not rows,
            "DOWN": along if rows else across,
            "ALONG": max(across, 1) if rows else along,
            "ROWS": module.TILE_ROWS,
            "COLUMNS": module.TILE_COLUMNS,
        }
        aligned = ["codes", "scales", "out", "columns"]
        built = cross_compile(module.decode_kernel, signature, constants, capability, aligned=aligned)
        assert built.spilled == 0
        assert "st.global.v4" in built.ptx, "16 bytes at a time"
