"""Grouped products of packed operands: the operator and its templates, against products of each group's slices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from long_tail import each_once
from one_template import Compiler, configs, kernel_of
from packed_operands import SPECS, WITH_TEMPLATE, Packed, assert_near, packed
from torch import Tensor

from metis_compile.compat import autotune
from metis_compile.kernels.gemm.grouped_op import GROUPED_GEMM
from metis_compile.numerics import QuantSpec, encode

pytest.importorskip("triton")

TOKENS = 75
ENDS = [[0, 7, 7, 40, 75], [17, 30, 31, 31, 66]]  # without tokens first or last, and tokens past the last end


def product(a: Packed, b: Packed, offs: Tensor) -> Tensor:
    return GROUPED_GEMM(*a, *b, offs)


def expected(a: Packed, b: Packed, offs: Tensor) -> Tensor:
    spans = [slice(start, end) for start, end in zip([0, *offs.tolist()], offs.tolist(), strict=False)]
    x, w = a.values, b.values.mT
    if w.dim() == 2:
        return torch.stack([x[:, span] @ w[span] for span in spans])
    rows = [x[span] @ matrix for span, matrix in zip(spans, w, strict=True)]
    return torch.cat([*rows, torch.zeros(len(x) - spans[-1].stop, w.shape[-1])])


@pytest.fixture
def compiler(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(triton_on_cpu, monkeypatch)


def of_rows(name: str, weight: str, **lying: Any) -> tuple[Packed, Packed]:
    return packed((TOKENS, 50), SPECS[name]), packed((5, 21, 50), SPECS[weight], **lying)


def of_k(left: str, right: str) -> tuple[Packed, Packed]:
    return packed((37, TOKENS), SPECS[left], transposed=True), packed((21, TOKENS), SPECS[right], transposed=True)


ROWS = [
    *((name, name, {}) for name in WITH_TEMPLATE),
    ("nvfp4", "nvfp4", {"transposed": True}),
    ("nvfp4", "nvfp4-2d", {"transposed": True, "across": True}),  # dgrad of a weight packed for fprop
    ("fp8-row", "fp8-128-2d", {"transposed": True}),
    ("nvfp4", "mxfp8", {}),
]


@pytest.mark.parametrize(("operands", "capability", "offs"), each_once(ROWS, [90, 100], ENDS))
def test_of_rows(compiler: Compiler, operands: tuple[str, str, dict[str, bool]], capability: int, offs: Any) -> None:
    name, weight, lying = operands
    a, b = of_rows(name, weight, **lying)
    wanted = expected(a, b, torch.tensor(offs))
    assert_near(product(a, b, torch.tensor(offs)), wanted)
    result, _ = compiler(capability, product, a, b, torch.tensor(offs, dtype=torch.int32))
    assert_near(result, wanted)


MIXED = [*((n, n) for n in WITH_TEMPLATE), ("nvfp4", "mxfp8"), ("fp8-row", "fp8-128"), ("mxfp8", "fp8")]


@pytest.mark.parametrize(("operands", "offs"), each_once(MIXED, ENDS))
@pytest.mark.parametrize("capability", [100])  # one template for all
def test_of_what_is_contracted(compiler: Compiler, operands: tuple[str, str], capability: int, offs: Any) -> None:
    """A group begins in the middle of a block, and of a byte."""
    left, right = operands
    a, b = of_k(left, right)
    wanted = expected(a, b, torch.tensor(offs))
    assert_near(product(a, b, torch.tensor(offs)), wanted)
    result, _ = compiler(capability, product, a, b, torch.tensor(offs))
    assert_near(result, wanted)


@pytest.mark.parametrize(
    ("operands", "offs"), each_once([("nvfp4", "nvfp4"), ("fp8-row", "fp8-row"), ("fp8-128", "fp8")], ENDS)
)
def test_without_a_template(compiler: Compiler, operands: tuple[str, str], offs: Any) -> None:
    left, right = operands
    compiler.plain = True
    for a, b in (of_rows(left, right), of_k(left, right)):
        result, code = compiler(90, product, a, b, torch.tensor(offs, dtype=torch.int32))
        assert "extern_kernels.metis_gemm_grouped(" in code
        assert_near(result, expected(a, b, torch.tensor(offs)))


def all_configurations() -> list[Any]:
    """Each size of a tile once, for rows and for k."""
    found = []
    for capability, name, grouped in [
        (90, "nvfp4", "rows"),
        (90, "nvfp4", "k"),
        (90, "fp8-128", "rows"),
        (100, "nvfp4", "rows"),
    ]:
        a, b = of_rows(name, name) if grouped == "rows" else of_k(name, name)
        tiles = {config[:3]: config for config in configs(a, b, capability, grouped)}
        for tile, config in tiles.items():
            label = f"{name}-{capability}-{grouped}-{'x'.join(map(str, tile))}"
            marks = () if tile == min(tiles, key=math.prod) else pytest.mark.long
            found.append(pytest.param(capability, name, grouped, config, id=label, marks=marks))
    return found


@pytest.mark.parametrize(("capability", "name", "grouped", "config"), all_configurations())
def test_every_configuration(compiler: Compiler, capability: int, name: str, grouped: str, config: Any) -> None:
    """Of groups of several tiles, and of several steps along k."""
    offs = torch.tensor([0, 301, 317, 600], dtype=torch.int32)
    if grouped == "rows":
        a, b = packed((601, 300), SPECS[name]), packed((4, 70, 300), SPECS[name])
    else:
        a, b = (packed((rows, 601), SPECS[name], transposed=True) for rows in (150, 70))
    result, code = compiler(capability, product, a, b, offs, config=config)
    assert "triton_tem" in code
    assert_near(result, expected(a, b, offs))


@pytest.mark.parametrize(
    ("capability", "name", "instruction"),
    [
        (80, "nvfp4", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
        (90, "nvfp4", "wgmma.mma_async.sync.aligned"),
        (90, "fp8", "wgmma.mma_async.sync.aligned"),
        (100, "nvfp4", "kind::mxf4nvf4.block_scale"),
        (100, "mxfp8", "kind::mxf8f6f4.block_scale"),
        (120, "nvfp4", "kind::mxf4nvf4.block_scale"),
    ],
)
def test_instructions(compiler: Compiler, capability: int, name: str, instruction: str) -> None:
    """What a product without groups has."""
    a, b = of_rows(name, name)
    config = configs(a, b, capability, "rows")[0]
    _, code = compiler(capability, product, a, b, torch.tensor(ENDS[0], dtype=torch.int32), config=config)
    assert instruction in kernel_of(code, capability).ptx


def test_what_lies_in_other_groups_is_not_read(compiler: Compiler) -> None:
    """NaN in the tokens of one, which begins in the middle of a block, stays in it."""
    x, g = torch.randn(75, 37), torch.randn(75, 21)
    x[40:] = torch.nan
    offs = torch.tensor([5, 40, 75], dtype=torch.int32)
    for text in (SPECS["mxfp4"], SPECS["mxfp8"]):  # without a scale of the whole tensor, which would be NaN
        spec = QuantSpec.parse(text)
        a, b = (Packed(encode(t, spec, 0), text, 0, 75, 0) for t in (x, g))
        result, _ = compiler(90, product, a, b, offs)
        assert not result[0].isnan().any()
        assert result[2].isnan().any()


def test_autotuning_times_groups_of_equal_size(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, which integers are timed with otherwise, would be groups without tokens."""
    from metis_compile.kernels.gemm import lowering

    seen: list[Tensor] = []

    def all_of_them(name: str, choices: list[Any], nodes: list[Any], layout: Any, inputs: Any) -> Any:
        ((place, make),) = inputs.items()
        assert nodes[place].get_dtype() == torch.int32
        compiler.choices = len(choices)
        seen.append(make(nodes[place]))
        return autotune(name, choices, nodes, layout, inputs)

    monkeypatch.setattr(lowering, "autotune", all_of_them)
    a, b = of_rows("nvfp4", "nvfp4")
    offs = torch.tensor(ENDS[0], dtype=torch.int32)
    result, _ = compiler(90, product, a, b, offs)
    assert_near(result, expected(a, b, offs))
    assert seen[0].tolist() == [15, 30, 45, 60, 75]
    assert seen[0].dtype == torch.int32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offs": torch.zeros(5)}, "offs must be int32 or int64, got float32"),
        ({"offs": torch.zeros(5, 1, dtype=torch.int32)}, r"offs must have one dimension, got shape \[5, 1\]"),
        ({"offs": torch.zeros(4, dtype=torch.int32)}, "b must hold a matrix for each of 4 ends, got 5"),
        ({"b": packed((5, 21, 66), SPECS["nvfp4"])}, "a and b must have equal k, got 50 and 66"),
        ({"a": packed((5, 75, 50), SPECS["nvfp4"])}, "a must be a quantized matrix, got 3 dimensions"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    a, b = of_rows("nvfp4", "nvfp4")
    given = {"a": a, "b": b, "offs": torch.zeros(5, dtype=torch.int32)} | change
    with pytest.raises((TypeError, ValueError), match=f"metis::grouped_gemm: {message}"):
        product(**given)


def test_ends_past_the_tokens_store_nothing_there(compiler: Compiler) -> None:
    """They are wrong; a kernel that can't say so stays within its tensors."""
    a, b = of_rows("nvfp4", "nvfp4")
    offs = torch.tensor([0, 7, 7, 40, 75], dtype=torch.int32)
    beyond = torch.tensor([0, 7, 7, 40, 7500], dtype=torch.int32)
    result, _ = compiler(90, product, a, b, beyond)
    assert_near(result, expected(a, b, offs))


def test_what_torchs_own_product_takes() -> None:
    """Rows and groups begin at 16 bytes: a group begins at any token, so tokens are no contiguous axis."""
    from metis_compile.kernels.gemm.aten_fallback import _is_aligned

    x, w, g = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((80, 40), (5, 40, 24), (80, 24)))
    assert _is_aligned(x, w)
    assert _is_aligned(x, w.mT.contiguous().mT)
    assert _is_aligned(x.T, g)
    assert not _is_aligned(x.T.contiguous().T, w)
    assert not _is_aligned(x[:, :39], w[:, :39].mT.contiguous().mT)
    assert not _is_aligned(x.T.contiguous(), g)
