"""Quantizing by an amax that was held: the values are those of the reference, and what has grown since saturates."""

from __future__ import annotations

import math

import numpy as np
import numpy_reference
import pytest
import torch
import value_families
from same_bytes import assert_same_parts
from specs import ALL
from torch import Tensor

from metis_compile.numerics import QuantSpec, encode, fake_quantize, held_amax, noise_shape, quantize
from metis_compile.numerics.held_amax import LONGEST

HELD = [spec for spec in ALL if spec.holds_amax]
FACTORS = [1.0, 2.0**-10, 0.3, 0.9, 1.7, 100.0]
NONE = torch.zeros(2)


def noise_for(x: Tensor, spec: QuantSpec, axis: int) -> Tensor | None:
    shape = noise_shape(x.shape, spec, axis)
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) if spec.needs_noise else None


def test_formats_with_a_tensor_scale_hold_one() -> None:
    assert {(s.format, s.block) for s in HELD} == {
        *((f, b) for f in ("nvfp4", "nvfp4_ue5m3") for b in ("1x16", "16x16")),
        *((f, "tensor") for f in ("fp8", "fp8_e5m2")),
    }


@pytest.mark.parametrize("spec", HELD, ids=str)
def test_matches_the_reference(spec: QuantSpec) -> None:
    """Of each family under one of the amaxes, another for the next spec."""
    for number, family in enumerate(value_families.FAMILIES):
        x = torch.from_numpy(value_families.draw(family, number, (17, 20)))
        axis, noise = number % 2, noise_for(x, spec, number % 2)
        factor = FACTORS[(number + HELD.index(spec)) % len(FACTORS)]
        amax = (x.abs().amax() * factor).clamp(max=torch.finfo(torch.float32).max)
        got = quantize(x, spec.format, axis, spec.block, spec.rounding, guard=spec.guard, noise=noise, amax=amax)
        want = numpy_reference.quantize(
            x.numpy(),
            spec.format,
            spec.block,
            axis,
            rounding=spec.rounding,
            guard=spec.guard,
            noise=None if noise is None else noise.numpy(),
            amax=np.float32(amax),
        )
        np.testing.assert_array_equal(got.codes.numpy(), want.codes, family)
        assert got.tensor_scale is not None
        assert want.tensor_scale is not None
        assert got.tensor_scale.numpy().tobytes() == want.tensor_scale.tobytes()
        if got.block_scales is not None and want.scales is not None:
            assert got.block_scales.view(torch.uint8).numpy().tobytes() == want.scales.tobytes()
        assert got.dequantize().numpy().tobytes() == want.values.tobytes(), family
        assert fake_quantize(x, spec, axis, noise, amax=amax).numpy().tobytes() == want.values.tobytes()


@pytest.mark.parametrize("spec", HELD, ids=str)
def test_its_own_amax_is_what_none_means(spec: QuantSpec) -> None:
    x = torch.randn(32, 48)
    noise = noise_for(x, spec, 1)
    assert_same_parts(encode(x, spec, 1, noise, x.abs().amax()), encode(x, spec, 1, noise), spec)


@pytest.mark.parametrize(
    ("format", "block", "room"),
    [
        ("nvfp4", None, 1.0),
        ("nvfp4", "16x16", 1.0),
        ("nvfp4_ue5m3", None, 61440 / 448),
        ("fp8", "tensor", 1.0),
        ("fp8_e5m2", "tensor", 1.0),
    ],
)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_what_has_grown_saturates(format: str, block: str | None, room: float, rounding: str) -> None:
    """Values end where the scales do, whatever guards stochastic rounding; what is smaller stays as it was."""
    spec = QuantSpec.make(format, block, rounding)
    x = torch.randn(32, 64)
    x[3, 5] = -x.abs().amax() * 1.01
    held = x.abs().amax()
    noise = noise_for(x, spec, 1)
    before = fake_quantize(x, spec, 1, noise, amax=held)
    for grown in (1.0, 8.0, 300.0, math.inf):
        y = x.clone()
        y[3, 5] *= grown
        found = fake_quantize(y, spec, 1, noise, amax=held)
        limit = float(held) * min(grown, room)
        assert float(found[3, 5]) == pytest.approx(-limit, rel=0.13)  # a block scale's rounding
        assert abs(float(found[3, 5])) <= float(held) * room * (1 + 1e-6)
        assert torch.equal(found[16:], before[16:])


@pytest.mark.parametrize("spec", HELD, ids=str)
def test_a_nan_stays(spec: QuantSpec) -> None:
    x = torch.randn(32, 64)
    x[3, 5] = math.nan
    found = fake_quantize(x, spec, 1, noise_for(x, spec, 1), amax=torch.tensor(2.0))
    assert found[3, 5].isnan()
    assert not found[16:].isnan().any()


def test_an_amax_serves_so_many_steps() -> None:
    kept, found = NONE, []
    for step in range(7):
        amax, kept = held_amax(torch.tensor([[0.5, -1.0 - step]]), kept, 3)
        found.append((float(amax), kept.tolist()))
    assert [amax for amax, _ in found] == [1, 1, 1, 4, 4, 4, 7]
    assert [kept for _, kept in found] == [[1, 1], [1, 2], [1, 3], [4, 1], [4, 2], [4, 3], [7, 1]]
    assert found[0][0] == float(held_amax(torch.ones(2), NONE, LONGEST)[0])


def test_one_holds_nothing() -> None:
    kept = NONE
    for value in (1.0, 2.0, 0.5):
        amax, kept = held_amax(torch.tensor([value]), kept, 1)
        assert amax == value


@pytest.mark.parametrize("bad", [0.0, math.inf, -math.inf, math.nan])
def test_an_amax_that_can_scale_nothing_serves_its_own_step(bad: float) -> None:
    """And the next step measures again, at first and later."""
    for before in (NONE, torch.tensor([5.0, 3.0])):
        amax, kept = held_amax(torch.tensor([bad]), before, 3)
        assert torch.equal(amax, torch.tensor(abs(bad))) or (math.isnan(bad) and amax.isnan())
        assert torch.equal(kept, before)
        amax, kept = held_amax(torch.tensor([2.0]), kept, 3)
        assert (float(amax), kept.tolist()) == (2.0, [2.0, 1.0])
    amax, kept = held_amax(torch.tensor([bad]), torch.tensor([5.0, 2.0]), 3)  # held: x is not looked at
    assert (float(amax), kept.tolist()) == (5.0, [5.0, 3.0])


def test_of_no_elements() -> None:
    amax, kept = held_amax(torch.empty(0, 5), NONE, 3)
    assert amax == 0
    assert torch.equal(kept, NONE)


@pytest.mark.parametrize(
    ("spec", "amax", "message"),
    [
        (
            "mxfp8 1x32 nearest floor",
            torch.ones(()),
            "amax must be None for .*, which has no scale of the whole tensor",
        ),
        ("fp8 row nearest", torch.ones(()), "amax must be None for .*, which has no scale of the whole tensor"),
        ("nvfp4 1x16 nearest 4/6-mse", torch.ones(()), "amax must be None for .*, whose 4/6 compares errors"),
        ("nvfp4 1x16 nearest", torch.ones(1), r"amax must be float32 without dimensions, got torch.float32 \(1,\)"),
        ("nvfp4 1x16 nearest", torch.ones(()).double(), "amax must be float32 without dimensions, got torch.float64"),
    ],
)
def test_what_is_refused(spec: str, amax: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(torch.ones(32, 32), QuantSpec.parse(spec), 1, None, amax)
