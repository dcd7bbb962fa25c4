"""The C++ kernels quantize by an amax that was held, byte for byte as the plain-torch numerics do."""

from __future__ import annotations

import math

import pytest
import torch
import value_families
from cpu_quantize import check_on_cpu

from metis_compile.numerics import QuantSpec

# one of each way that block scales are made, and of each that elements are rounded; each is a library to build
SPECS = [
    "nvfp4 1x16 nearest",
    "nvfp4 1x16 eden",
    "nvfp4_ue5m3 16x16 nearest",
    "nvfp4_ue5m3 1x16 stochastic round_up",
    "fp8 tensor nearest",
]


@pytest.mark.parametrize("text", SPECS)
def test_an_amax_that_was_held(text: str) -> None:
    """What has grown since saturates as in plain torch, and so does what is not finite."""
    spec = QuantSpec.parse(text)
    for number, family in enumerate(value_families.FAMILIES):
        x = torch.from_numpy(value_families.draw(family, number, (37, 41)))
        for factor in (2.0**-10, 0.3, 0.9, 100.0):
            amax = (x.abs().amax() * factor).clamp(max=torch.finfo(torch.float32).max)
            check_on_cpu(x, spec, -1 - number % 2, amax=amax)
    for special in (math.nan, -math.nan, math.inf, -math.inf):
        x = torch.randn(40, 65)
        x[7, 33] = special
        check_on_cpu(x, spec, 1, amax=torch.tensor(2.0))
