"""Four-over-six by hand, where it pays, where scales underflow, unbiased under stochastic rounding, and compiled."""

from __future__ import annotations

import pytest
import torch

from metis_compile.numerics import QuantSpec, fake_quantize, quantize

CHOICES = ("mse", "mae")


def one_block(*values: float) -> torch.Tensor:
    """A block with these values behind a block of 1536, so that the tensor's scale is 1 and scale_6 is amax / 6."""
    x = torch.zeros(2, 16)
    x[0] = 1536.0
    x[1, : len(values)] = torch.tensor(values)
    return x


def scale_of(x: torch.Tensor, select: str) -> float:
    scales = quantize(x, select=select).block_scales
    assert scales is not None
    return float(scales[1].float())


@pytest.mark.parametrize("select", CHOICES)
def test_by_hand(select: str) -> None:
    assert scale_of(one_block(12.0, 8.0), select) == 2  # 6 and 4
    assert scale_of(one_block(12.0, 9.0), select) == 3  # 4 and 3; with a scale of 2 there is no 4.5
    assert scale_of(one_block(12.0, 12.0), select) == 2  # both are exact, 6 is preferred
    assert quantize(one_block(12.0, 9.0), select=select).dequantize()[1, :2].tolist() == [12, 9]


def test_squares_and_magnitudes_can_differ() -> None:
    # At 2: one is off by 1. At 3: three are off by half of that each, and one by nothing.
    x = one_block(12.0, 9.0, 1.0, 1.0, 2.0)
    assert scale_of(x, "mse") == 3
    assert scale_of(x, "mae") == 2


def test_a_scale_that_underflows_is_not_taken_where_the_other_does_not() -> None:
    x = one_block(6 * 2.0**-10)
    assert scale_of(x, "mse") == 2.0**-9
    assert quantize(x, select="mse").dequantize()[1, 0] == 6 * 2.0**-10
    assert scale_of(one_block(2.0**-12), "mse") == 0


@pytest.mark.parametrize("special", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(special: float) -> None:
    for block in ("1x16", "16x16"):
        for rounding, select in (("nearest", "mse"), ("nearest", "mae"), ("stochastic", "expected")):
            x = torch.randn(40, 70)
            x[3, 50] = special
            assert not quantize(x, block=block, rounding=rounding, select=select).dequantize()[3, 50].isfinite()


def test_it_pays_on_average() -> None:
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))

    def error(select: str | None, measure: str = "mse", rounding: str = "nearest") -> float:
        spec = QuantSpec.make("nvfp4", None, rounding, select=select)
        off = fake_quantize(x, spec, -1, noise if spec.stochastic else None) - x
        return float(off.square().mean() if measure == "mse" else off.abs().mean())

    assert error("mse") < 0.9 * error(None)
    assert error("mse") < error("mae")
    assert error("mae", "mae") < error("mse", "mae") < error(None, "mae")
    assert error("expected", rounding="stochastic") < 0.95 * error(None, rounding="stochastic")


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


def test_inductor_makes_the_same_choices() -> None:
    x = torch.randn(64, 96)
    x[0] = 0.0
    x[1] *= 1e-6
    ragged, noise = torch.randn(37, 41), torch.rand(64, 96)

    def values(x: torch.Tensor, ragged: torch.Tensor, noise: torch.Tensor) -> list[torch.Tensor]:
        return [
            fake_quantize(x, QuantSpec.make("nvfp4", select="mse"), 0),
            fake_quantize(ragged, QuantSpec.make("nvfp4", select="mae"), -1),
            fake_quantize(x, QuantSpec.make("nvfp4", "16x16", "stochastic", select="expected"), -1, noise),
        ]

    got = torch.compile(values, fullgraph=True)(x, ragged, noise)
    for compiled, eager in zip(got, values(x, ragged, noise), strict=True):
        assert torch.equal(bits(compiled), bits(eager))
