"""A compiled model computes the same with the C++ kernels as with the numerics that Inductor compiles."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from metis_compile import Policy
from metis_compile.compat import inductor_config
from metis_compile.passes.lowering import cpu_gemm


def step(cpu_kernels: bool) -> list[torch.Tensor]:
    """The output and the gradients of a training step; gradients are rounded stochastically."""
    torch.compiler.reset()
    torch.manual_seed(1)
    model = nn.Linear(48, 40)
    x = torch.randn(33, 48, requires_grad=True)
    options = {"policy": "nvfp4", "cpu_kernels": cpu_kernels}
    with inductor_config.patch(force_disable_caches=True):  # its keys know nothing of what a test replaces
        y = torch.compile(model, backend="metis", options=options)(x)
        y.backward(torch.randn(33, 40))
    return [y.detach(), *(t.grad for t in (x, *model.parameters()) if t.grad is not None)]


@pytest.fixture(scope="module")
def traced() -> list[torch.Tensor]:
    return step(cpu_kernels=False)


def test_the_same_bits(traced: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_gemm, "bf16_gemm", lambda: None)  # so that both multiply in float32
    for actual, expected in zip(step(cpu_kernels=True), traced, strict=True):
        assert torch.equal(actual, expected)


def test_the_same_to_summation_order(traced: list[torch.Tensor]) -> None:
    for actual, expected in zip(step(cpu_kernels=True), traced, strict=True):
        assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


POLICY = """
[recipe.fp8]
weight     = "mxfp8"
activation = "mxfp8"
gradient   = "mxfp8"
[[rule]]
module = "linear"
recipe = "fp8"
[[rule]]
recipe = "high"
"""


class Products(nn.Module):
    """A linear, beside the model's own products of bfloat16 values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 32)

    def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        a, b, added = a.float(), b.float(), self.linear(x)
        return [
            torch.addbmm(added, a, b),
            torch.addmm(added, a[0], b[0], alpha=-0.5),
            torch.addmm(added[0], a[0], b[0], alpha=2),
            torch.addmm(added, a[0], b[0], beta=2),
            torch.baddbmm(added, a, b, alpha=3),
        ]


def test_products_that_are_added_to_something() -> None:
    torch.manual_seed(0)
    model, x = Products(), torch.randn(48, 64)
    a, b = torch.randn(3, 48, 128).bfloat16(), torch.randn(3, 128, 32).bfloat16()
    policy = Policy.from_toml(POLICY)
    results = []
    for cpu_kernels in (True, False):
        torch.compiler.reset()
        compiled = torch.compile(model, backend="metis", options={"policy": policy, "cpu_kernels": cpu_kernels})
        results.append(compiled(x, a, b))
    for actual, expected in zip(*results, strict=True):
        assert actual.shape == expected.shape
        assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_what_is_quantized_is_stored_once() -> None:
    """For the tensor scale and both orientations: Inductor would have each call store a buffer of its own."""
    torch.compiler.reset()
    model = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 32))
    compiled = torch.compile(model, backend="metis", options={"policy": "averis"})
    with inductor_config.patch(force_disable_caches=True):  # which would leave no code to look at
        _, (forward, *_) = run_and_get_code(compiled, torch.randn(64, 48))
    read = {
        re.search(rf"{call}\((buf\d+)", forward)[1]
        for call in ("cpu_tensor_scale.default", "values", "cpu_parts.default")
    }  # type: ignore[index]
    assert len(read) == 1
