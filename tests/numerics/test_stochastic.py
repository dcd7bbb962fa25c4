"""Stochastic rounding is unbiased with a guard, and the same check fails without one."""

from __future__ import annotations

import math

import pytest
import torch

from metis_compile.numerics import QuantSpec, fake_quantize

SAMPLES = 300


def statistics(spec: QuantSpec) -> dict[str, float]:
    """t statistics, over repeated draws, of the error along x, along the blocks' maxima, and in sum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 512, generator=generator)
    blocks = x.unflatten(1, (-1, 16))
    peaks = torch.where(blocks.abs() == blocks.abs().amax(2, keepdim=True), blocks, 0).flatten(1)
    directions = {"x": x, "peaks": peaks, "sum": torch.ones_like(x)}
    along: dict[str, list[float]] = {name: [] for name in directions}
    for _ in range(SAMPLES):
        error = fake_quantize(x, spec, -1, torch.rand(x.shape, generator=generator)) - x
        for name, direction in directions.items():
            along[name].append(float((error * direction).double().sum()))
    result = {}
    for name, values in along.items():
        mean = sum(values) / SAMPLES
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (SAMPLES - 1) / SAMPLES)
        result[name] = mean / deviation
    return result


def is_unbiased(spec: QuantSpec) -> bool:
    return all(abs(t) < 5 for t in statistics(spec).values())  # exceeded by chance once in a million


@pytest.mark.parametrize(
    ("format", "block", "guard", "select"),
    [
        ("nvfp4", "1x16", "round_up", None),
        ("nvfp4", "1x16", "17/16", None),
        ("nvfp4", "1x16", "round_up", "expected"),
        ("nvfp4", "16x16", "round_up", None),
        ("mxfp4", "1x32", "round_up", None),
        ("mxfp8", "1x32", "round_up", None),
        ("fp8", "tensor", "round_up", None),
        ("fp8_e5m2", "row", "round_up", None),
    ],
)
def test_guarded_rounding_is_unbiased(format: str, block: str, guard: str, select: str | None) -> None:
    spec = QuantSpec.make(format, block, "stochastic", guard, select=select)
    assert is_unbiased(spec), statistics(spec)


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4", "mxfp8"])
def test_unguarded_rounding_fails_the_same_check(format: str) -> None:
    spec = QuantSpec.make(format, None, "stochastic", "none")
    assert not is_unbiased(spec)
    assert statistics(spec)["peaks"] < -20  # it shrinks
