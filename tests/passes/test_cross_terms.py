"""Means split off both operands: products of a centered residual with ones over the tokens are left out, others not."""

from __future__ import annotations

import torch
from graphs import capture_graphs
from torch import Tensor, nn

from metis_compile import Policy
from metis_compile.numerics import QuantSpec, fake_quantize

MEAN = '{ kind = "mean", factors = "high" }'


def run(weight: str, activation: str, gradient: str) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The output of a linear, its gradients, and [x, w, g]."""
    names = {"weight": weight, "activation": activation, "gradient": gradient}
    lines = [f'{n} = {{ format = "nvfp4"' + (f", split = {MEAN}" if split else "") + " }" for n, split in names.items()]
    policy = Policy.from_toml("[recipe.r]\n" + "\n".join(lines) + '\n[[rule]]\nrecipe = "r"\n')
    torch.manual_seed(0)
    x, w, g = (
        torch.randn(rows, columns) + 3 * torch.randn(1, columns) for rows, columns in ((40, 48), (32, 48), (40, 32))
    )
    captured = capture_graphs(nn.Linear(48, 32, bias=False), x.clone().requires_grad_(), policy=policy)
    graph = captured.graphs[0].joint_after
    assert graph is not None
    values = {(32, 48): w, (40, 48): x, (40, 32): g}
    y, *gradients = graph(*(values[tuple(n.meta["val"].shape)] for n in graph.graph.find_nodes(op="placeholder")))
    by_shape = {tuple(t.shape): t for t in gradients if t is not None}
    return y, by_shape[40, 48], by_shape[32, 48], [x, w, g]


def q(x: Tensor, axis: int) -> Tensor:
    return fake_quantize(x, QuantSpec.make("nvfp4"), axis)


def centered(x: Tensor) -> tuple[Tensor, Tensor]:
    mu = x.mean(0, keepdim=True)
    return x - mu, mu


def test_wgrad_of_two_centered_residuals_is_their_product_and_that_of_the_means() -> None:
    _, _, dw, (x, _, g) = run("", "mean", "mean")
    (rx, mx), (rg, mg) = centered(x), centered(g)
    torch.testing.assert_close(dw, q(rg, 0).mT @ q(rx, 0) + len(x) * mg.mT @ mx, rtol=1e-5, atol=1e-4)


def test_fprop_reads_the_residual_along_the_weights_mean() -> None:
    """Features are contracted, over which nothing is centered."""
    y, _, _, (x, w, _) = run("mean", "mean", "")
    (rx, mx), (rw, mw) = centered(x), centered(w)
    torch.testing.assert_close(y, q(rx, 1) @ q(rw, 1).mT + mx @ w.mT + rx @ mw.mT, rtol=1e-5, atol=1e-4)
