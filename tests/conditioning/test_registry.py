"""Conditionings by name, a user's own among them, and their texts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from metis_compile.conditioning import Chain, Conditioned, Mean, Spectral, describe, make_conditioning, split


@dataclass(frozen=True, kw_only=True)
class LargestColumns:
    """Splits off the columns with the largest elements."""

    count: int = 1

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        columns = x.abs().amax(0).topk(self.count).indices
        left = x[:, columns]
        right = torch.nn.functional.one_hot(columns, x.shape[1]).float()
        return Conditioned(x - left @ right, left, right)


@dataclass
class Changeable:
    def split(self, x: Tensor) -> None: ...


def test_a_class_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("somebodys")
    module.LargestColumns, module.Changeable = LargestColumns, Changeable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys", module)
    x = torch.randn(20, 30)
    x[:, 7] *= 50
    residual, left, right = split(x, "somebodys:LargestColumns", count=2)
    assert torch.equal(residual[:, 7], torch.zeros(20))
    assert torch.allclose(residual + left @ right, x)
    residual, left, right = split(x, ["mean", "somebodys:LargestColumns"])
    assert torch.allclose(residual + left @ right, x, atol=1e-4)
    for kind, message in [
        ("somebodys:Absent", "can't be imported"),
        ("nobodys:LargestColumns", "can't be imported: No module named 'nobodys'"),
        ("somebodys:Changeable", "must be a frozen dataclass"),
        ("math:sqrt", "must be a frozen dataclass with a method split"),
        ("package.module:Class", "can't be imported"),
    ]:
        with pytest.raises(ValueError, match=message):
            split(x, kind)
    with pytest.raises(ValueError, match="a setting of somebodys:LargestColumns must be one of 'count', got 'cuont'"):
        split(x, "somebodys:LargestColumns", cuont=2)


def test_texts_say_what_differs_from_the_defaults() -> None:
    assert describe(Mean()) == "mean"
    assert describe(Mean(factors="nvfp4", fold=False)) == "mean factors=(nvfp4 1x16 nearest) fold=false"
    assert describe(Spectral(rank=0.015, refresh=8)) == "spectral rank=0.015 refresh=8"
    assert describe(make_conditioning(["mean", {"kind": "spectral", "rank": 8}])) == "mean + spectral rank=8"
    assert describe(LargestColumns(count=3)).endswith("LargestColumns count=3")


def test_what_is_made_of_names() -> None:
    assert make_conditioning("mean") == Mean()
    assert make_conditioning(["mean"]) == Mean()
    assert make_conditioning("spectral", {"rank": 8}) == Spectral(rank=8)
    assert make_conditioning(["mean", {"kind": "spectral", "rank": 8}]) == Chain(steps=(Mean(), Spectral(rank=8)))
    assert make_conditioning(Spectral(rank=8)) == Spectral(rank=8)
    assert hash(make_conditioning(["mean", "spectral"])) == hash(Chain(steps=(Mean(), Spectral())))
    assert Spectral(factors="nvfp4") == Spectral(factors="nvfp4 1x16 nearest")
