"""Spectra before and after a split, of a model whose activations have what splits take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metis_compile.html_report import Chart, spectra, spectra_section
from metis_compile.inspection.explain import Explanation, explain
from metis_compile.policy import Policy


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(128, 64) + 5.0  # most of what reaches the second linear is its mean


@pytest.mark.parametrize("preset", ["averis", "best"])
def test_a_split_takes_the_largest(preset: str, model: nn.Module, x: torch.Tensor) -> None:
    policy = Policy.load(preset)
    explanation = explain(model, x, policy=policy)
    found = spectra(model, lambda: model(x), explanation, policy)
    (first,) = found
    assert first.module == "2"  # in the middle of those that are called by a number
    with torch.no_grad():
        expected = torch.linalg.svdvals(model[:2](x).double())  # type: ignore[index]
    assert first.before == pytest.approx(expected.tolist(), rel=1e-4)
    assert first.after[0] < 0.2 * first.before[0]
    assert "split" in first.split
    assert not [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    chart = spectra_section(found).blocks[0]
    assert isinstance(chart, Chart)
    assert chart.lines[0].y[0] == 1.0
    assert chart.lines[1].y[0] == pytest.approx(first.after[0] / first.before[0])


def test_without_a_split_there_is_none(model: nn.Module, x: torch.Tensor) -> None:
    policy = Policy.load("nvfp4")
    explanation: Explanation = explain(model, x, policy=policy)
    assert spectra(model, lambda: model(x), explanation, policy) == []
