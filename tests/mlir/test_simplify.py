"""Each rule keeps every bit of what it replaces, and leaves alone what it is not for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from metis_compile.mlir.simplify import RULES, _narrow_integers, _uint8_in_int32, simplify
from metis_compile.numerics import QuantSpec, encode

aten, prims = torch.ops.aten, torch.ops.prims
# rules that leave the op, in other dtypes
IN_OTHER_DTYPES = (_narrow_integers, _uint8_in_int32)
HANDLED = {target for targets, handler in RULES for target in targets if handler not in IN_OTHER_DTYPES}


def traced(run: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    with FakeTensorMode() as mode:
        gm = make_fx(run)(*(mode.from_tensor(x) for x in inputs))
    return gm


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
    )


def signed() -> Tensor:
    return torch.tensor([0.0, -0.0, 1.5, -2.0, torch.inf, -torch.inf, torch.nan, -torch.nan, 1e-40, -1e-40])


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "shift by numbers": (lambda x: (x >> 3, x << 2), (torch.tensor([-9, 7, 2**30], dtype=torch.int32),)),
    "shift by tensors": (
        lambda x, n: (x >> n, x << n, aten.bitwise_right_shift.Scalar_Tensor(55272, n)),
        (torch.arange(-6, 6, dtype=torch.int64).reshape(4, 3), torch.tensor([0, 1, 5])),
    ),
    "copysign": (lambda x: torch.copysign(torch.full_like(x, 4.0), x), (signed(),)),
    "signbit": (torch.signbit, (signed(),)),
    "reciprocal": (torch.reciprocal, (signed(),)),
    "squeeze": (lambda x: (x.squeeze(), x.squeeze(0), x.squeeze((0, 2))), (torch.rand(1, 3, 1),)),
    "iota": (
        lambda x: x + prims.iota(5, start=2, step=3, dtype=torch.int64, device="cpu", requires_grad=False),
        (torch.rand(5),),
    ),
    "rev": (lambda x: prims.rev(x, [1]), (torch.rand(2, 3),)),
    "any": (
        lambda x: (aten.any.default(x), aten.any.dims(x, [0], True), aten.any.dims(x, None)),
        (torch.tensor([[0.0, 1.0], [0.0, torch.nan]]),),
    ),
    "scatter": (
        lambda x, i: aten.scatter.value(x, 1, i, -1.0),
        (torch.rand(3, 5), torch.tensor([[4], [0], [2]])),
    ),
    "integers negated": (lambda x: (-x, -x.to(torch.uint8)), (torch.tensor([2**53 + 1, -7, 0]),)),
    "rows added": (
        lambda x, mask, i, v: aten._unsafe_masked_index_put_accumulate(x, mask, [i], v),
        (
            torch.ones(5, 2),
            torch.tensor([[True, True], [False, True]]).unsqueeze(-1),
            torch.tensor([[0, 3], [1, 3]]),
            torch.arange(8.0).reshape(2, 2, 2),
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_kept(case: str) -> None:
    run, inputs = CASES[case]
    gm = traced(run, *inputs)
    there = {node.target for node in gm.graph.nodes} & HANDLED
    assert there, "the rules have nothing to do"
    simplify(gm.graph)
    gm.recompile()
    assert not any(node.target in there for node in gm.graph.nodes)
    wanted, got = run(*inputs), gm(*inputs)
    wanted, got = (r if isinstance(r, tuple) else (r,) for r in (wanted, got))
    assert all(same_bits(a, b) for a, b in zip(got, wanted, strict=True))


def test_leading_powers_are_read_from_the_exponent() -> None:
    """In every magnitude that is rounded to E4M3 or E5M2; nothing is left for a compiler to contract."""
    spec = QuantSpec.parse("fp8_e5m2 row nearest")
    x = torch.randn(16, 64) * torch.logspace(-20, 20, 64, base=2.0)
    x[0], x[1, 0], x[2, 0] = 0.0, torch.nan, -0.0
    gm = traced(lambda x: encode(x, spec, 1), x)
    multiplied = [n for n in gm.graph.nodes if n.target is aten.mul.Tensor and 2.0**23 + 1 in n.args]
    assert multiplied
    simplify(gm.graph)
    gm.recompile()
    assert not any(n.target is aten.mul.Tensor and 2.0**23 + 1 in n.args for n in gm.graph.nodes)
    assert all(same_bits(a, b) for a, b in zip(gm(x), encode(x, spec, 1), strict=True))


def test_floats_become_narrow_integers_by_way_of_int32() -> None:
    x = torch.tensor([0.0, 1.7, 127.0, 128.0, 255.0])
    gm = traced(lambda x: (x.to(torch.uint8), x.bfloat16().to(torch.uint8), (x - 128).to(torch.int8)), x)
    wanted = gm(x)
    simplify(gm.graph)
    gm.recompile()
    casts = [n for n in gm.graph.nodes if n.op == "call_function" and n.meta["val"].dtype in (torch.uint8, torch.int8)]
    assert len(casts) == 3
    assert all(n.args[0].meta["val"].dtype == torch.int32 for n in casts)
    assert all(same_bits(a, b) for a, b in zip(gm(x), wanted, strict=True))


def test_uint8_beside_numbers_is_in_int32() -> None:
    x = torch.tensor([0, 1, 127, 128, 255], dtype=torch.uint8)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return x > 130, x == 200, x / 2, x // 16, x % 7, x + 200, 5 - x, x * 3, torch.maximum(x, x.to(torch.int32))

    gm = traced(run, x)
    wanted = gm(x)
    simplify(gm.graph)
    gm.recompile()
    read = {n.target for n in gm.graph.nodes if any(i.meta["val"].dtype == torch.uint8 for i in n.all_input_nodes)}
    assert read == {prims.convert_element_type.default, aten._to_copy.default, "output"}
    assert all(same_bits(a, b) for a, b in zip(gm(x), wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_are_summed_in_float32(dtype: torch.dtype) -> None:
    x, y = torch.randn(40, 30).to(dtype), torch.randn(30, 8).to(dtype)
    gm = traced(lambda x, y: (torch.mm(x, y), x.sum(0), x.mean(1)), x, y)
    simplify(gm.graph)
    gm.recompile()
    sums = [n.meta["val"].dtype for n in gm.graph.nodes if "mm" in n.name or "sum" in n.name or "mean" in n.name]
    assert torch.float32 in sums
    for got, wanted in zip(gm(x, y), (torch.mm(x, y), x.sum(0), x.mean(1)), strict=True):
        # rounded once, from float32 sums in another order: at most to the neighbour
        torch.testing.assert_close(got, wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_what_a_rule_is_not_for_is_left_alone() -> None:
    two_rows = (torch.rand(3, 5), torch.tensor([[4, 0], [0, 1], [2, 3]]))
    for run, inputs, target in [
        (lambda x: x.sum(0), (torch.rand(3, 2),), aten.sum.dim_IntList),
        (lambda x: torch.abs(x - x * 0.5), (torch.rand(3),), aten.abs.default),
        (lambda x, i: aten.scatter.value(x, 1, i, -1.0), two_rows, aten.scatter.value),
        (torch.neg, (torch.rand(3),), aten.neg.default),
        (lambda x: x.to(torch.int32), (torch.rand(3),), aten._to_copy.default),
        (lambda x: x > 3, (torch.arange(5),), aten.gt.Scalar),
    ]:
        gm = traced(run, *inputs)
        simplify(gm.graph)
        assert any(node.target is target for node in gm.graph.nodes)
