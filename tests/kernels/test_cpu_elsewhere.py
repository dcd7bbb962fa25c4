"""The C++ kernels give the bytes of the numerics on another kind of CPU, and do nothing that C++ leaves undefined."""

from __future__ import annotations

import pytest
import torch
from long_tail import each_once
from same_bytes import assert_same, assert_same_parts
from standalone_kernels import AARCH64, SANITIZED, Machine, quantized
from undefined import hard_to_quantize

from metis_compile.numerics import QuantSpec, encode, fake_quantize, noise_shape, uniform_noise

# a format, a block, a rounding and a choice of scales each
SPECS = [
    "nvfp4 1x16 nearest",
    "nvfp4 1x16 stochastic round_up",
    "nvfp4 16x16 nearest 4/6-mse",
    "nvfp4 1x16 eden",
    "mxfp4 1x32 nearest even",
    "mxfp8_e5m2 1x32 nearest rceil",
    "fp8 128x128 nearest",
    "fp8 tensor nearest",
]


MACHINES = [AARCH64, SANITIZED]


def need(machine: Machine) -> None:
    if machine.missing:
        pytest.skip(
            f"{' and '.join(machine.missing)} not found; Debian has them in g++-aarch64-linux-gnu and qemu-user"
        )


@pytest.mark.parametrize(("spec", "machine"), each_once(SPECS, MACHINES))
def test_bytes(spec: str, machine: Machine) -> None:
    need(machine)
    parsed, seed = QuantSpec.parse(spec), 2**62 + 12345
    for axis in (0, 1):
        for x in hard_to_quantize((37, 51)):
            noise = None
            if parsed.needs_noise:
                noise = uniform_noise(torch.tensor([seed]), 3, noise_shape(x.shape, parsed, axis))
            *parts, values = quantized(machine, x, parsed, axis, seed, 3)
            assert_same_parts(parts, encode(x, parsed, axis, noise), parsed)
            assert_same(values, fake_quantize(x, parsed, axis, noise), "values")


@pytest.mark.parametrize(("dtype", "machine"), each_once([torch.bfloat16, torch.float16], MACHINES))
def test_narrow_input(dtype: torch.dtype, machine: Machine) -> None:
    need(machine)
    spec = QuantSpec.parse("nvfp4 1x16 nearest")
    x = torch.randn(37, 51).to(dtype)
    *parts, values = quantized(machine, x, spec, 1, 0, 0)
    assert_same_parts(parts, encode(x, spec, 1), spec)
    assert_same(values, fake_quantize(x, spec, 1), "values")
