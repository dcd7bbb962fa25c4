"""Products of packed operands: the operator and its templates, against decoding and multiplying."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from long_tail import each_once, sampled
from one_template import Compiler, configs, kernel_of
from packed_operands import LAYOUTS, RTOL, SPECS, WITH_TEMPLATE, Packed, assert_near, expected, packed, product
from torch import Tensor

from metis_compile.numerics import QuantSpec, encode

pytest.importorskip("triton")


@pytest.fixture
def compiler(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(triton_on_cpu, monkeypatch)


# What multiplies each format, by compute capability: with tiles of the first configuration that a template has.
INSTRUCTIONS = {
    80: dict.fromkeys(SPECS, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
    90: {
        name: "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16"
        if "mx" in name or "fp4" in name
        else f"wgmma.mma_async.sync.aligned.m64n128k32.f32.{'e5m2.e5m2' if 'e5m2' in name else 'e4m3.e4m3'}"
        for name in SPECS
    },
    100: {
        name: "kind::mxf4nvf4.block_scale"
        if "nvfp4" in name
        else "kind::mxf4.block_scale"
        if name == "mxfp4"
        else "kind::mxf8f6f4.block_scale"
        if "mx" in name
        else "kind::f8f6f4"
        for name in SPECS
    },
}


# Below 10.0 all formats are decoded, by the same code as for the instructions of 10.0 that multiply them as they are.
EARLIER = {(80, "nvfp4"), (80, "fp8"), (90, "nvfp4"), (90, "mxfp8"), (90, "fp8"), (90, "fp8-128"), (90, "nvfp4-2d")}


@pytest.mark.parametrize(
    ("name", "capability"),
    sampled(
        itertools.product(WITH_TEMPLATE, INSTRUCTIONS),
        lambda name, capability: capability == 100 or (capability, name) in EARLIER,
    ),
)
def test_formats(compiler: Compiler, name: str, capability: int) -> None:
    a, b = packed((37, 75), SPECS[name]), packed((21, 75), SPECS[name])
    assert_near(product(a, b), expected(a, b))
    result, _ = compiler(capability, product, a, b)
    assert_near(result, expected(a, b))


@pytest.mark.parametrize(
    ("capability", "name"),
    [(80, "nvfp4"), (90, "nvfp4"), (90, "fp8"), (90, "fp8-128"), (100, "nvfp4"), (100, "mxfp4"), (100, "mxfp8")],
)
def test_instructions(compiler: Compiler, name: str, capability: int) -> None:
    a, b = packed((16, 32), SPECS[name]), packed((16, 32), SPECS[name])
    _, code = compiler(capability, product, a, b, config=configs(a, b, capability)[0])
    assert INSTRUCTIONS[capability][name] in kernel_of(code, capability).ptx


def test_block_scaled_instructions_of_consumer_gpus(compiler: Compiler) -> None:
    _, code = compiler(120, product, packed((16, 32), SPECS["nvfp4"]), packed((16, 32), SPECS["nvfp4"]))
    assert "kind::mxf4nvf4.block_scale" in kernel_of(code, 120).ptx


@pytest.mark.parametrize(
    ("left", "right", "transposed", "types"),
    [("fp8", "fp8", True, "e4m3.e4m3"), ("fp8_e5m2", "fp8", False, "e5m2.e4m3")],
    ids=["wgrad", "e5m2 by e4m3"],
)
def test_fp8_instructions_of_hopper(compiler: Compiler, left: str, right: str, transposed: bool, types: str) -> None:
    a, b = (packed((16, 32), SPECS[name], transposed=transposed) for name in (left, right))
    result, code = compiler(90, product, a, b, config=configs(a, b, 90)[0])
    assert_near(result, expected(a, b))
    assert f"wgmma.mma_async.sync.aligned.m64n128k32.f32.{types}" in kernel_of(code, 90).ptx


def all_configurations() -> list[Any]:
    """Each size of a tile once: how Triton runs it, in stages and warps, is nothing to the interpreter."""
    cases = [
        (90, "nvfp4", False),
        (90, "fp8-128", False),
        (100, "nvfp4", False),
        (100, "mxfp8", True),
        (100, "fp8", True),
        (120, "mxfp8", False),
    ]
    found = []
    for capability, name, transposed in cases:
        operand = packed((2, 2), SPECS[name], transposed=transposed)
        tiles = {config[:3]: config for config in configs(operand, operand, capability)}
        for tile, config in tiles.items():
            label = f"{name}-{capability}-{'wgrad' if transposed else 'fprop'}-{'x'.join(map(str, tile))}"
            marks = () if tile == min(tiles, key=math.prod) else pytest.mark.long
            found.append(pytest.param(capability, name, transposed, config, id=label, marks=marks))
    return found


@pytest.mark.parametrize(("capability", "name", "transposed", "config"), all_configurations())
def test_every_configuration(compiler: Compiler, capability: int, name: str, transposed: bool, config: Any) -> None:
    a, b = (packed((rows, 259), SPECS[name], transposed=transposed) for rows in (133, 67))
    result, _ = compiler(capability, product, a, b, config=config)
    assert_near(result, expected(a, b))


@pytest.mark.parametrize(
    ("name", "transposed", "capability"), each_once(["nvfp4", "mxfp8", "fp8"], [False, True], [90, 100])
)
def test_whole_steps_along_k(compiler: Compiler, name: str, transposed: bool, capability: int) -> None:
    """As in most models: loads without masks. In the first tile that is timed, with a tail or a batch."""
    batch = (2,) if name == "fp8" else ()
    a, b = (packed((*batch, rows, 512), SPECS[name], transposed=transposed) for rows in (37, 21))
    tails = () if batch else (torch.randn(37, 5), torch.randn(5, 21))
    result, code = compiler(capability, product, a, b, tails, config=configs(a, b, capability)[0])
    assert_near(result, expected(a, b, tails))
    assert "EVEN_K : tl.constexpr = True" in code


@pytest.mark.parametrize(
    ("case", "transposed"),
    each_once([(90, "nvfp4"), (90, "fp8"), (100, "nvfp4"), (100, "mxfp8")], [False, True]),
)
def test_more_than_an_int32_away(compiler: Compiler, case: tuple[int, str], transposed: bool) -> None:
    """Codes whose rows, or whose lines along k, lie a GiB from each other; the memory in between is never touched."""
    capability, name = case
    a, b = packed((5, 32), SPECS[name]), packed((3, 32), SPECS[name])
    if transposed:
        a, b = packed((32, 6), SPECS[name], transposed=True), packed((16, 6), SPECS[name], transposed=True)
    codes = a.parts[0]
    far = torch.empty_strided(codes.shape, (2**30 + 16, 1), dtype=torch.uint8)
    far.copy_(codes)
    a = a._replace(parts=[far, *a.parts[1:]])
    result, code = compiler(capability, product, a, b)
    assert "INDEX_DTYPE : tl.constexpr = tl.int64" in code
    assert_near(result, expected(a, b))


@pytest.mark.parametrize(("capability", "name"), [(90, "nvfp4"), (100, "nvfp4"), (90, "mxfp4"), (100, "mxfp4")])
def test_the_least_and_the_largest_scales(compiler: Compiler, name: str, capability: int) -> None:
    """448 * 6 and 2^-9 * 0.5 under E4M3; 1.5 * 2^127 and 0.5 * 2^-127 under E8M0: each alone in its sums."""
    nvfp4 = name == "nvfp4"
    block, largest, offs = (16, 0x77, (448.0, 2.0**-9)) if nvfp4 else (32, 0x33, (2.0**127, 2.0**-127))
    codes = torch.tensor([[largest] * (block // 2), [0x11] * (block // 2)], dtype=torch.uint8)
    scales = torch.tensor(offs)[:, None].to(torch.float8_e4m3fn if nvfp4 else torch.float8_e8m0fnu)
    a = Packed([codes, scales, *([torch.ones(())] if nvfp4 else [])], SPECS[name], 1, block, 1)
    b = Packed(encode(torch.eye(3, block), QuantSpec.parse(SPECS[name]), 1), SPECS[name], 1, block, 1)
    result, _ = compiler(capability, product, a, b)
    assert (float(a.values.max()), float(a.values.min())) == (offs[0] * (6 if nvfp4 else 1.5), offs[1] * 0.5)
    torch.testing.assert_close(result, expected(a, b), rtol=RTOL, atol=0)


@pytest.mark.parametrize(("sides", "capability"), each_once(LAYOUTS, [90, 100]))
def test_layouts_and_mixed_formats(compiler: Compiler, sides: Any, capability: int) -> None:
    left, right = sides
    a, b = packed((37, 75), SPECS[left[0]], **left[1]), packed((21, 75), SPECS[right[0]], **right[1])
    assert_near(product(a, b), expected(a, b))
    result, _ = compiler(capability, product, a, b)
    assert_near(result, expected(a, b))


@pytest.mark.parametrize(("name", "transposed"), each_once(["nvfp4", "mxfp8", "fp8-row"], [False, True]))
def test_batches(compiler: Compiler, name: str, transposed: bool) -> None:
    a, b = packed((3, 19, 50), SPECS[name], transposed=transposed), packed((3, 5, 50), SPECS[name])
    assert_near(product(a, b), expected(a, b))
    result, _ = compiler(90, product, a, b)
    assert_near(result, expected(a, b))


@pytest.mark.parametrize(("dtype", "capability"), each_once([torch.float32, torch.bfloat16], [90, 100]))
def test_tails(compiler: Compiler, dtype: torch.dtype, capability: int) -> None:
    a, b = packed((37, 75), SPECS["nvfp4"]), packed((21, 75), SPECS["nvfp4"])
    tails = tuple(
        t.to(dtype) for t in (torch.randn(37, 5), torch.randn(5, 21), torch.randn(19, 37).T, torch.randn(19, 21))
    )
    assert_near(product(a, b, tails), expected(a, b, tails))
    result, _ = compiler(capability, product, a, b, tails)
    assert_near(result, expected(a, b, tails))


def test_epilogues_are_fused_into_the_store(compiler: Compiler) -> None:
    def function(a: Packed, b: Packed, bias: Tensor, residual: Tensor) -> Tensor:
        return (torch.relu(product(a, b) + bias) + residual).bfloat16()

    a, b = packed((37, 75), SPECS["nvfp4"]), packed((21, 75), SPECS["nvfp4"])
    bias, residual = torch.randn(21), torch.randn(37, 21)
    result, code = compiler(90, function, a, b, bias, residual)
    wanted = (torch.relu(expected(a, b) + bias) + residual).bfloat16()
    torch.testing.assert_close(result, wanted, rtol=2**-7, atol=2**-7)  # float32 sums may round either way
    assert kernel_of(code, 90)  # there is one
    assert code.count(".run(") == 1


@pytest.mark.parametrize(("name", "bad"), each_once(["nvfp4", "mxfp4", "mxfp8", "fp8"], [float("nan"), float("inf")]))
def test_what_is_not_finite_stays_so(compiler: Compiler, name: str, bad: float) -> None:
    x = torch.randn(5, 40)
    x[2, 3] = bad
    a = Packed(encode(x, QuantSpec.parse(SPECS[name]), 1), SPECS[name], 1, 40, 1)
    b = packed((6, 40), SPECS[name])
    assert not product(a, b)[2].isfinite().any()
    result, _ = compiler(90, product, a, b)
    assert not result[2].isfinite().any()
    assert torch.equal(result.isfinite(), product(a, b).isfinite())
