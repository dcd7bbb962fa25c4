"""The C++ quantize and decode kernels held to plain torch, byte for byte."""

from __future__ import annotations

import torch
from same_bytes import assert_same, assert_same_parts
from torch import Tensor

from metis_compile.kernels.cpu import launch, ops
from metis_compile.kernels.parts import tensor_target
from metis_compile.numerics import QuantSpec, encode, fake_quantize, noise_shape, uniform_noise


def given_of(x: Tensor, spec: QuantSpec, seed: Tensor | None, amax: Tensor | None = None) -> list[Tensor]:
    target = tensor_target(spec)
    scale = [] if target is None else list(ops.CPU_TENSOR_SCALE(x if amax is None else amax, target))
    return scale + ([] if seed is None else [seed])


def all_parts(
    x: Tensor, spec: QuantSpec, axis: int, seed: Tensor | None, stream: int, amax: Tensor | None = None
) -> list[Tensor]:
    """What encode returns, from the kernels."""
    given = given_of(x, spec, seed, amax)
    scale = given[1:2] if tensor_target(spec) is not None else []
    return ops.CPU_PARTS(x, given, str(spec), axis, stream) + scale


def check_on_cpu(x: Tensor, spec: QuantSpec, axis: int, stream: int = 3, amax: Tensor | None = None) -> None:
    """Parts, values and decoded values, full and exact. amax: one that was held."""
    seed = torch.tensor([0x7A5B_1234_9ABC_DEF0]) if spec.needs_noise else None
    noise = None if seed is None else uniform_noise(seed, stream, noise_shape(x.shape, spec, axis))
    parts, values = encode(x, spec, axis, noise, amax), fake_quantize(x, spec, axis, noise, amax=amax)
    given = given_of(x, spec, seed, amax)
    assert_same(ops.CPU_VALUES(x, given, str(spec), axis, stream, False), values, "values")
    assert_same_parts(all_parts(x, spec, axis, seed, stream, amax), parts, spec)
    assert_same(ops.CPU_DECODE(parts, str(spec), axis, x.shape[axis], False), values, "decoded")
    if launch.is_exact(spec):
        exact = [
            ops.CPU_VALUES(x, given, str(spec), axis, stream, True),
            ops.CPU_DECODE(parts, str(spec), axis, x.shape[axis], True),
        ]
        representable = (values == 0) | (values.abs() >= 2.0**-126) | values.isnan()
        for each in exact:
            full = each.float() if tensor_target(spec) is None else each.float() * parts[-1]
            assert_same(full[representable], values[representable], "exact values")
