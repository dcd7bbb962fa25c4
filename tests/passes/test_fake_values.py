"""What a call returns for fake tensors: evaluated once for inputs of one kind, and the same as when evaluated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from metis_compile.ops.quantization import QUANTIZE
from metis_compile.passes.graph import fake_values
from metis_compile.passes.graph.fake_values import FakeValues

aten = torch.ops.aten


@pytest.fixture
def mode() -> FakeTensorMode:
    return FakeTensorMode()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The shapes of what was not evaluated."""
    seen: list[Any] = []
    run = fake_values.fake_tensor

    def noted(mode: Any, shape: Any, *rest: Any) -> Any:
        seen.append(tuple(shape))
        return run(mode, shape, *rest)

    monkeypatch.setattr(fake_values, "fake_tensor", noted)
    return seen


CALLS: list[tuple[Any, Any]] = [
    (aten.mm.default, lambda x: (x, x.T)),
    (aten.add.Tensor, lambda x: (x.T, 1.5)),
    (aten.sum.dim_IntList, lambda x: (x, [0], True)),
    (aten.cat.default, lambda x: ([x, x], 1)),
    (torch.ops.prims.convert_element_type.default, lambda x: (x.T, torch.bfloat16)),
    (QUANTIZE, lambda x: (x, "nvfp4 1x16 nearest", 1)),
]


@pytest.mark.parametrize(("target", "arguments"), CALLS, ids=lambda value: str(value) if value in dict(CALLS) else "")
def test_the_second_is_as_the_first(mode: FakeTensorMode, made: list[Any], target: Any, arguments: Any) -> None:
    values = FakeValues(mode)
    found = [values(target, arguments(mode.from_tensor(torch.randn(48, 32))), {}) for _ in range(2)]
    assert made
    first, second = (list(each) if isinstance(each, (list, tuple)) else [each] for each in found)
    assert type(found[0]) is type(found[1])
    assert len({t.untyped_storage()._cdata for t in (*first, *second)}) == len(first) + len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
        assert b.fake_mode is mode
        with mode:
            assert (b + 1).shape == a.shape if b.dtype.is_floating_point and b.dtype.itemsize > 1 else True


def test_inputs_of_another_kind_are_evaluated(mode: FakeTensorMode, made: list[Any]) -> None:
    values = FakeValues(mode)
    x = mode.from_tensor(torch.randn(48, 32))
    results = [
        values(aten.add.Tensor, (y, other), {})
        for y, other in ((x, 1), (x, 1.0), (x.bfloat16(), 1), (x.T.contiguous().T, 1), (x[:, :16], 1))
    ]
    assert not made
    assert results[3].stride() == (1, 48)


def test_views_share_the_memory_of_their_input(mode: FakeTensorMode, made: list[Any]) -> None:
    values = FakeValues(mode)
    x = mode.from_tensor(torch.randn(48, 32))
    for _ in range(2):
        assert values(aten.permute.default, (x, [1, 0]), {}).untyped_storage()._cdata == x.untyped_storage()._cdata
    assert not made


def test_symbolic_sizes_are_evaluated(made: list[Any]) -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    values = FakeValues(mode)
    how = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    x = mode.from_tensor(torch.randn(48, 32), symbolic_context=how)
    for _ in range(2):
        assert isinstance(values(aten.add.Tensor, (x, 1), {}).shape[0], torch.SymInt)
    assert not made
