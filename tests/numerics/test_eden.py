"""Eden rounding by hand, its mean over noise and over signs, its error, what is not finite, and compiled."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metis_compile.conditioning import hadamard, signs_from
from metis_compile.conditioning.hadamard import inverse_hadamard
from metis_compile.numerics import QuantSpec, encode, fake_quantize, noise_shape, quantize, uniform_noise

EDEN = QuantSpec.make("nvfp4", rounding="eden")
SAMPLES = 300
SEEDS = torch.randint(2**63 - 1, [SAMPLES, 1], generator=torch.Generator().manual_seed(0))  # as a graph draws them


def one_block(*values: float) -> Tensor:
    """A block with these values behind a block of 1536, so that the tensor's scale is 1 and ideal is amax / 6."""
    x = torch.zeros(2, 16)
    x[0] = 1536.0
    x[1, : len(values)] = torch.tensor(values)
    return x


def scale_of(x: Tensor, noise: float) -> float:
    return float(encode(x, EDEN, -1, torch.tensor([[0.5], [noise]]))[1][1].float())


def test_by_hand() -> None:
    # Divided by 2: 6, 2.25 and 2.25, which become 6, 2 and 2. The factor is 46.125 / 45, the scale 2.05: a fifth of
    # the way from 2 to 2.25.
    x = one_block(12.0, 4.5, 4.5)
    assert scale_of(x, 0.79) == 2
    assert scale_of(x, 0.81) == 2.25
    values = fake_quantize(x, EDEN, -1, torch.tensor([[0.0], [0.9]]))
    assert values[1, :4].tolist() == [13.5, 4.5, 4.5, 0]
    assert (values[0] == 1536).all()  # what is exact stays so, whatever is drawn


def test_elements_are_rounded_as_if_the_scale_were_exact() -> None:
    x = torch.randn(64, 64)
    codes = encode(x, EDEN, -1, torch.rand(64, 4))[0]
    assert torch.equal(codes, encode(x, EDEN, -1, torch.rand(64, 4))[0])
    values = fake_quantize(x, EDEN, -1, torch.rand(64, 4))
    peaks = x.unflatten(1, (4, 16)).abs().argmax(2, keepdim=True)
    blocks = values.unflatten(1, (4, 16)).abs()
    assert torch.equal(blocks.gather(2, peaks), blocks.amax(2, keepdim=True))  # nothing clips past the largest


@pytest.mark.parametrize("block", ["1x16", "16x16"])
def test_a_small_scale_is_kept_on_average(block: str) -> None:
    """Below the smallest scale of E4M3, where rounding it to nearest would take all."""
    x = torch.zeros(32, 16)
    x[0] = 1536.0
    x[16, 0] = 6 * 2.0**-12  # an eighth of that scale
    spec = QuantSpec.make("nvfp4", block, "eden")
    at = 16 if block == "1x16" else 1
    for draw, scale in ((0.874, 0.0), (0.876, 2.0**-9)):
        noise = torch.full(noise_shape(x.shape, spec, -1), draw)
        assert encode(x, spec, -1, noise)[1][at, 0].float() == scale
        assert fake_quantize(x, spec, -1, noise)[16, 0] == 6 * scale


def test_blocks_of_nothing_and_of_too_little() -> None:
    assert (quantize(torch.zeros(3, 40), rounding="eden").dequantize() == 0).all()
    x = one_block(2.0**-149, 2.0**-149)
    parts = encode(x, EDEN, -1, torch.full((2, 1), 1 - 2.0**-24))
    assert parts[1].float().tolist() == [[256], [0]]
    tiny = torch.full((1, 16), 2.0**-149)
    assert torch.isfinite(quantize(tiny, rounding="eden").dequantize()).all()


@pytest.mark.parametrize("block", ["1x16", "16x16"])
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(block: str, special: float) -> None:
    x = torch.randn(40, 70)
    x[3, 50] = special
    assert not quantize(x, block=block, rounding="eden").dequantize()[3, 50].isfinite()


def test_no_scale_reaches_the_largest() -> None:
    """The room above 256 is enough for the largest factors."""
    for block, element, largest in (("1x16", 4.999, 1.23), ("16x16", 0.2499, 1.45)):
        x = torch.full((16, 16), element)
        x[:, 0] = 6.0 if block == "1x16" else element
        x[0, 0] = 6.0
        spec = QuantSpec.make("nvfp4", block, "eden")
        scales = encode(x, spec, -1, torch.full(noise_shape(x.shape, spec, -1), 1 - 2.0**-24))[1].float()
        assert 256 * (largest - 0.1) < scales.max() <= 256 * largest + 32  # one step of E4M3 there


def turned(x: Tensor, seed: Tensor, quantized: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x transformed with the signs of this seed, quantized, and back."""
    signs = signs_from(seed, 1)
    return inverse_hadamard(quantized(hadamard(x, 1, signs), seed), 1, signs, x.shape[1])


def by_eden(x: Tensor, seed: Tensor) -> Tensor:
    return fake_quantize(x, EDEN, 1, uniform_noise(seed, 2, noise_shape(x.shape, EDEN, 1)))


def to_nearest(x: Tensor, seed: Tensor) -> Tensor:
    return fake_quantize(x, QuantSpec.make("nvfp4"), 1)


def stochastically(x: Tensor, seed: Tensor) -> Tensor:
    return fake_quantize(x, QuantSpec.make("nvfp4", rounding="stochastic"), 1, uniform_noise(seed, 2, x.shape))


def bias(x: Tensor, quantized: Callable[[Tensor, Tensor], Tensor]) -> dict[str, tuple[float, float]]:
    """Of the mean error over signs and draws along x, in sum, and along x's strongest elements: share, t statistic."""
    directions = {"x": x, "sum": torch.ones_like(x), "peaks": torch.where(x.abs() > 2, x, 0)}
    errors = [(turned(x, seed, quantized) - x).double() for seed in SEEDS]
    result = {}
    for name, direction in directions.items():
        along = torch.stack([(error * direction).sum() for error in errors]) / direction.square().sum()
        result[name] = float(along.mean()), float(along.mean() / (along.std() / math.sqrt(SAMPLES)))
    return result


def test_the_mean_over_signs_and_noise_is_x() -> None:
    x = torch.randn(32, 512, generator=torch.Generator().manual_seed(0))
    eden, nearest = bias(x, by_eden), bias(x, to_nearest)
    assert max(abs(eden["x"][1]), abs(eden["sum"][1])) < 5, eden  # exceeded by chance once in a million
    assert nearest["x"][1] < -20, nearest  # it shrinks
    # Across x the transform of 16 leaves something: its signs have only so many outcomes for a block.
    assert abs(eden["peaks"][0]) < 0.25 * abs(nearest["peaks"][0]), (eden, nearest)
    assert nearest["peaks"][1] < -20, nearest


def test_each_block_is_unbiased_along_itself_without_a_transform() -> None:
    x = torch.randn(1, 16 * 256, generator=torch.Generator().manual_seed(0)) + 0.5
    blocks = x.reshape(256, 16)

    def along(values: Tensor) -> Tensor:
        return ((values.reshape(256, 16) - blocks) * blocks).double().sum(1) / blocks.double().square().sum(1)

    every = [torch.full((1, 256), (i + 0.5) / 128) for i in range(128)]  # the noise's range, evenly
    mean = torch.stack([along(fake_quantize(x, EDEN, 1, noise)) for noise in every]).mean(0)
    assert mean.abs().max() < 1 / 8 / 256 + 1e-4  # half of such an interval of E4M3's step; and fixed()
    assert along(to_nearest(x, SEEDS[0])).abs().mean() > 0.005


def test_the_error_is_less_than_half_of_stochastic_rounding() -> None:
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))

    def error(quantized: Callable[[Tensor, Tensor], Tensor]) -> float:
        return float((turned(x, SEEDS[0], quantized) - x).square().mean())

    assert error(to_nearest) < error(by_eden) < 0.45 * error(stochastically)


def test_noise_has_one_number_per_stored_scale() -> None:
    assert noise_shape((5, 40), EDEN, 0) == [1, 40]
    assert noise_shape((5, 40), EDEN, -1) == [5, 3]
    assert noise_shape((2, 40, 20), QuantSpec.make("nvfp4", "16x16", "eden"), -1) == [2, 3, 2]
    assert noise_shape((5, 40), QuantSpec.make("nvfp4", rounding="stochastic"), 0) == [5, 40]


def test_inductor_gives_the_same_bits() -> None:
    x, ragged, seed = torch.randn(64, 96), torch.randn(37, 41), torch.tensor([7])
    x[0] = 0.0
    x[1] *= 1e-6
    square = QuantSpec.make("nvfp4", "16x16", "eden")

    def values(x: Tensor, ragged: Tensor, seed: Tensor) -> list[Tensor]:
        return [
            fake_quantize(t, spec, axis, uniform_noise(seed, axis, noise_shape(t.shape, spec, axis)))
            for t, spec, axis in ((x, EDEN, 0), (ragged, EDEN, 1), (ragged, square, 1))
        ]

    got = torch.compile(values, fullgraph=True)(x, ragged, seed)
    for compiled, eager in zip(got, values(x, ragged, seed), strict=True):
        assert torch.equal(compiled.view(torch.int32), eager.view(torch.int32))
