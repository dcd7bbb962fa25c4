"""A compiled model multiplies what four-over-six chooses, with the C++ kernels and traced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metis_compile import Policy
from metis_compile.numerics import QuantSpec, fake_quantize


@pytest.mark.parametrize("cpu_kernels", [True, False])
def test_a_linear_is_multiplied_by_what_the_choice_gives(cpu_kernels: bool) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48, bias=False), torch.randn(40, 64)
    options = {"policy": Policy.load("four-over-six"), "cpu_kernels": cpu_kernels}
    compiled = torch.compile(linear, backend="metis", options=options)

    def product(spec: QuantSpec) -> torch.Tensor:
        return fake_quantize(x, spec, 1) @ fake_quantize(linear.weight, spec, 1).T

    got = compiled(x).detach()
    assert torch.allclose(got, product(QuantSpec.make("nvfp4", select="mse")), atol=1e-5)
    assert not torch.allclose(got, product(QuantSpec.make("nvfp4")), atol=1e-2)
