"""Weights' gradients times what stands for the derivative of their rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import SUMMATION_ORDER, relative_error
from graphs import capture_graphs, eager_backend, sites_of
from torch import Tensor, nn

from metis_compile import Policy, PolicyError
from metis_compile.numerics import QuantSpec, fake_quantize
from metis_compile.numerics.estimator import dge_factor

SPEC = QuantSpec.make("fp4")
TEXT = """
[recipe.estimated]
weight = { format = "fp4", estimator = "dge" }
activation = "high"
gradient = "high"
[[rule]]
gemm = "fprop"
recipe = "estimated"
"""


class Conv1D(nn.Module):
    """GPT-2's linear, whose weight lies the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 24))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_wgrad_is_multiplied_wherever_the_weight_lies(kind: str, dtype: torch.dtype) -> None:
    """Also where the policy leaves it in high precision; no other gradient is."""
    model = (nn.Linear(48, 24, bias=False) if kind == "linear" else Conv1D()).to(dtype)
    x, g = torch.randn(40, 48, dtype=dtype), torch.randn(40, 24, dtype=dtype)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    plain = torch.autograd.grad(model(a), [a, model.weight], g)
    torch.compiler.reset()
    found = torch.autograd.grad(
        torch.compile(model, backend=eager_backend(Policy.from_toml(TEXT)))(b), [b, model.weight], g
    )
    factor = dge_factor(model.weight, SPEC, 1 if kind == "linear" else 0)
    tolerance = SUMMATION_ORDER if dtype == torch.float32 else 5e-3
    assert relative_error(found[0], plain[0]) < tolerance
    assert relative_error(found[1], plain[1].float() * factor) < tolerance
    assert relative_error(found[1], plain[1]) > 0.1


class TwoLinears(torch.autograd.Function):
    """Two products under one number of autograd's, as kernels that fuse layers have them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        h = x @ first.mT
        ctx.save_for_backward(x, h, first, second)
        return h @ second.mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, h, first, second = ctx.saved_tensors
        inner = gradient @ second
        return inner @ first, inner.mT @ x, gradient.mT @ h


def test_weights_of_one_function_are_each_multiplied_by_their_own() -> None:
    x, g = torch.randn(40, 48), torch.randn(40, 48)
    weights = [nn.Parameter(torch.randn(48, 48)) for _ in range(2)]
    model = nn.ParameterList(weights)
    plain = torch.autograd.grad(TwoLinears.apply(x, *weights), weights, g)

    def run(x: Tensor) -> Tensor:
        return TwoLinears.apply(x, *model)  # type: ignore[no-any-return]

    torch.compiler.reset()
    found = torch.autograd.grad(torch.compile(run, backend=eager_backend(Policy.from_toml(TEXT)))(x), weights, g)
    h = x @ fake_quantize(weights[0], SPEC, 1).mT  # what the second one's gradient is made of
    for actual, expected, weight in zip(found, (plain[0], g.mT @ h), weights, strict=True):
        assert relative_error(actual, expected * dge_factor(weight, SPEC, 1)) < SUMMATION_ORDER


def test_an_addbmm_is_one_matrix_in_forward_and_several_in_backward() -> None:
    x, added, g = torch.randn(4, 40, 48), torch.randn(40, 24), torch.randn(40, 24)
    weight = nn.ParameterList([torch.randn(4, 48, 24)])
    (plain,) = torch.autograd.grad(torch.addbmm(added, x, weight[0]), [weight[0]], g)

    def run(x: Tensor) -> Tensor:
        return torch.addbmm(added, x, weight[0])

    torch.compiler.reset()
    compiled = torch.compile(run, backend=eager_backend(Policy.from_toml(TEXT)))
    (found,) = torch.autograd.grad(compiled(x), [weight[0]], g)
    factor = dge_factor(weight[0].reshape(-1, 24), SPEC, 0).view(4, 48, 24)
    assert relative_error(found, plain * factor) < SUMMATION_ORDER


class Experts(nn.Module):
    """A batch of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 24, 48))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight.mT)


def test_experts_are_left_high() -> None:
    captured = capture_graphs(Experts(), torch.randn(3, 40, 48), policy=Policy.from_toml(TEXT))
    (reason,) = (s.reason for s in sites_of(captured) if s.gemm == "fprop")
    assert reason is not None
    assert reason.startswith("an estimator is of a matrix's gradient, and the operands have the shapes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight = { format = 'fp8', estimator = 'dge' }", "means nothing for fp8: it is for elements of 4 bits"),
        ("weight = { format = 'fp4', estimator = 'ste' }", 'must be "dge" for fp4, got "ste"'),
        ("weight = { format = 'nvfp4', hadamard = true, estimator = 'dge' }", "leave out eden, hadamard and split"),
        ("weight = { format = 'nvfp4', split = 'mean', estimator = 'dge' }", "leave out eden, hadamard and split"),
        ("activation = { format = 'fp4', estimator = 'dge' }", "which is for weights; leave it out"),
        ("weight = { format = 'nvfp4', hadamard_size = 32 }", "means nothing without a transform: give hadamard too"),
        ("weight = { format = 'nvfp4', hadamard = true, hadamard_size = 24 }", "must be one of 16, 32, 64, 128"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy.from_toml(f"[recipe.a]\nextends = 'nvfp4'\n{text}")
