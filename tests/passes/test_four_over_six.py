"""Four-over-six on the CPU, where the C++ kernels do not know it: traced, and the values of the definition."""

from __future__ import annotations

import torch
from torch import nn

from metis_compile import Policy
from metis_compile.numerics import QuantSpec, fake_quantize


def test_a_linear_is_multiplied_by_what_the_choice_gives() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48, bias=False), torch.randn(40, 64)
    compiled = torch.compile(linear, backend="metis", options={"policy": Policy.load("four-over-six")})

    def product(spec: QuantSpec) -> torch.Tensor:
        return fake_quantize(x, spec, 1) @ fake_quantize(linear.weight, spec, 1).T

    got = compiled(x).detach()
    assert torch.allclose(got, product(QuantSpec.make("nvfp4", select="mse")), atol=1e-5)
    assert not torch.allclose(got, product(QuantSpec.make("nvfp4")), atol=1e-2)
