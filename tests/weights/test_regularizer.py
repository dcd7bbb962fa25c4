"""The dual-range regularizer by its formula, and what it counts as a weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metis_compile import dual_range_regularizer


def test_by_its_formula_and_its_gradient() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False))
    value = dual_range_regularizer(model, 0.5, 0.01, 0.1)
    w = torch.cat([model[1].weight.flatten(), model[3].weight.flatten()]).detach().requires_grad_()
    want = 0.5 * w.square().mean() + 0.01 * (1 / (w.square() + 0.1)).mean()
    assert torch.allclose(value, want)
    value.backward()
    want.backward()
    got = torch.cat([model[1].weight.grad.flatten(), model[3].weight.grad.flatten()])
    assert torch.allclose(got, w.grad)
    assert model[0].weight.grad is None
    assert model[1].bias.grad is None


def test_both_ends_of_the_range_cost() -> None:
    linear = nn.Linear(2, 2, bias=False)

    def cost(value: float) -> float:
        nn.init.constant_(linear.weight, value)
        return dual_range_regularizer(linear, 1.0, 1.0, 0.01).item()

    assert cost(1.0) < cost(0.1) < cost(0.0) == pytest.approx(100)
    assert cost(1.0) < cost(4.0)


def test_shared_and_frozen_weights() -> None:
    shared = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Embedding(3, 3))
    shared[1].weight = shared[0].weight
    once = dual_range_regularizer(shared[0], 1.0, 1.0, 1.0)
    assert torch.equal(dual_range_regularizer(shared, 1.0, 1.0, 1.0), once)
    shared[2].weight = shared[0].weight  # a head tied to an embedding is still a head
    assert torch.equal(dual_range_regularizer(shared, 1.0, 1.0, 1.0), once)
    shared.requires_grad_(False)
    with pytest.raises(ValueError, match="got none"):
        dual_range_regularizer(shared, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(("l1", "l2", "eps", "message"), [(-1, 1, 1, "l1"), (1, -1, 1, "l2"), (1, 1, 0, "eps must")])
def test_coefficients_out_of_range(l1: float, l2: float, eps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dual_range_regularizer(nn.Linear(2, 2), l1, l2, eps)
