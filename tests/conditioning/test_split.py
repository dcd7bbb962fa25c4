"""Every conditioning: what is split off and what is left make up x; reproducible; nothing finite is lost."""

from __future__ import annotations

import pytest
import torch
from anisotropic import anisotropic
from hypothesis import given, settings
from hypothesis import strategies as st

import metis_compile.conditioning as conditioning
from metis_compile.conditioning import Chain, Conditioned, Mean, Spectral, split
from metis_compile.conditioning.factors import round_to_bfloat16
from metis_compile.numerics import QuantSpec, fake_quantize, uniform_noise

SEED = torch.tensor([3])
SR = "nvfp4 1x16 stochastic none"
ALL = [
    Mean(),
    Mean(factors="high"),
    Mean(factors="nvfp4"),
    Mean(factors=SR),
    Spectral(rank=3),
    Spectral(rank=5, factors="high", sketch="signs", oversample=0, power_steps=0),
    Spectral(rank=0.2, factors="nvfp4", sample=1.0),
    Spectral(rank=4, factors=SR, sample=0.01, sample_least=1),
    Chain(steps=(Mean(), Spectral(rank=3, factors="mxfp8"))),
]
IDS = [conditioning.describe(c).replace(" ", "-").replace("/", "") for c in ALL]
SCALES = {"plain": 1.0, "tiny": 1e-30, "huge": 1e30}


@pytest.mark.parametrize("how", ALL, ids=IDS)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    axis=st.sampled_from([0, 1]),
    scale=st.sampled_from(sorted(SCALES)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_parts_make_up_the_whole(
    how: Mean | Spectral | Chain, rows: int, columns: int, axis: int, scale: str, dtype: torch.dtype
) -> None:
    x = (anisotropic(rows, columns, rows) * SCALES[scale]).to(dtype)
    residual, left, right = how.split(x, axis=axis, seed=SEED)
    assert residual.shape == x.shape
    assert left.shape[0] == rows
    assert right.shape == (left.shape[1], columns)
    assert {residual.dtype, left.dtype, right.dtype} == {torch.float32}
    whole = residual + left @ right
    assert (whole - x.float()).abs().max() <= 2e-5 * x.float().abs().max()


@pytest.mark.parametrize("how", ALL, ids=IDS)
def test_zero_stays_zero_and_one_row_works(how: Mean | Spectral | Chain) -> None:
    for x in (torch.zeros(20, 30), torch.zeros(1, 30), torch.zeros(20, 1)):
        residual, left, right = how.split(x, seed=SEED)
        assert residual.eq(0).all()
        assert (left @ right).eq(0).all()


@pytest.mark.parametrize("how", ALL, ids=IDS)
def test_no_rows_and_what_is_not_finite(how: Mean | Spectral | Chain) -> None:
    residual, left, right = how.split(torch.zeros(0, 30), seed=SEED)
    assert (residual.shape, left.shape[0], right.shape[1]) == ((0, 30), 0, 30)
    assert right.isfinite().all()
    for special in (torch.nan, torch.inf):
        x = anisotropic(20, 30)
        x[7, 9] = special
        residual, left, right = how.split(x, seed=SEED)
        assert not (residual + left @ right)[7, 9].isfinite()


@pytest.mark.parametrize("how", ALL, ids=IDS)
def test_the_same_seed_and_stream_give_the_same_parts(how: Mean | Spectral | Chain) -> None:
    x = anisotropic(50, 40)

    def parts(seed: int = 3, stream: int = 0) -> Conditioned:
        return how.split(x, seed=torch.tensor([seed]), stream=stream)

    first = parts()
    assert all(map(torch.equal, first, parts()))
    if isinstance(how, Mean) and not how.needs_seed:
        assert all(map(torch.equal, first, how.split(x)))
    else:
        assert not torch.equal(first.right, parts(seed=4).right)
        assert not torch.equal(first.right, parts(stream=1).right)


@pytest.mark.parametrize("factors", ["high", "bfloat16", "nvfp4", "mxfp8", "fp8", SR])
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_mean_by_its_formula(factors: str, fold: bool, axis: int) -> None:
    x = anisotropic(37, 50)
    how = Mean(factors=factors, fold=fold)
    residual, left, right = how.split(x, axis=axis, seed=SEED, stream=5)
    mu = x.mean(0, keepdim=True)
    stored = mu.to(torch.bfloat16).float() if factors == "bfloat16" else mu
    if factors not in ("high", "bfloat16"):
        spec = QuantSpec.parse(how.factors)
        noise = uniform_noise(SEED, 5 + 2**24, [1, 50]) if spec.stochastic else None
        stored = fake_quantize(mu, spec, 1, noise)
    assert torch.equal(right, stored)
    assert torch.equal(left, torch.ones(37, 1))
    assert torch.equal(residual, x - (stored if fold else mu))
    assert how.cross_terms_are_zero == bool(residual.sum(0).abs().max() < 1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_quantized_spectral_factors_by_their_formula(axis: int) -> None:
    x = anisotropic(64, 48)
    basis = torch.linalg.qr(torch.randn(48, 6))[0].T
    spec = QuantSpec.make("nvfp4")
    for fold in (True, False):
        residual, left, right = Spectral(factors="nvfp4", fold=fold).split(x, axis=axis, basis=basis)
        exact = x @ basis.T
        norms = exact.norm(dim=0, keepdim=True)
        want_left = fake_quantize(exact / norms, spec, axis) * norms
        want_right = fake_quantize(basis, spec, axis)
        assert torch.allclose(left, want_left, rtol=1e-5)
        assert torch.equal(right, want_right)
        taken = left @ right if fold else exact @ basis
        assert torch.allclose(residual, x - taken, atol=1e-4)


def test_what_is_left_is_smaller() -> None:
    x = anisotropic(256, 128)
    best = torch.linalg.svdvals(x)
    want = float(best[5:].norm() / best.norm())

    def left_over(kind: object, **settings: object) -> float:
        parts = split(x, kind, seed=SEED, **settings)  # type: ignore[arg-type]
        return float(parts.residual.norm() / x.norm())

    assert left_over("mean") < 0.98
    assert left_over("spectral", rank=5) < 1.05 * want
    assert left_over("spectral", rank=5, oversample=0, power_steps=0) < 3 * want
    assert left_over(["mean", {"kind": "spectral", "rank": 4}]) < 1.1 * want


def test_each_step_of_a_chain_draws_noise_of_its_own() -> None:
    x = anisotropic(50, 40)
    mean, spectral = Mean(factors=SR), Spectral(rank=3, factors=SR)
    first = mean.split(x, seed=SEED, stream=5)
    second = spectral.split(first.residual, seed=SEED, stream=5 + 8 * 2**24)
    chained = Chain(steps=(mean, spectral)).split(x, seed=SEED, stream=5)
    assert torch.equal(chained.residual, second.residual)
    assert torch.equal(chained.left, torch.cat([first.left, second.left], 1))
    assert torch.equal(chained.right, torch.cat([first.right, second.right], 0))


@pytest.mark.parametrize("how", ALL, ids=IDS)
def test_what_a_conditioning_says_of_itself(how: Mean | Spectral | Chain) -> None:
    x = anisotropic(48, 64)
    basis = torch.linalg.qr(torch.randn(64, 3))[0].T

    def parts(axis: int, seed: int) -> Conditioned:
        return how.split(x, axis=axis, seed=torch.tensor([seed]), basis=basis)

    assert how.depends_on_axis == (not all(map(torch.equal, parts(0, 1), parts(1, 1))))
    assert how.needs_seed == (not all(map(torch.equal, parts(1, 1), parts(1, 2))))


def test_leading_dimensions_are_rows() -> None:
    x = anisotropic(60, 32)
    flat = split(x, "spectral", rank=4, seed=SEED)
    folded = split(x.reshape(3, 20, 32), "spectral", rank=4, seed=SEED)
    assert folded.residual.shape == (3, 20, 32)
    assert folded.left.shape == (3, 20, 4)
    assert torch.equal(folded.left.flatten(0, 1), flat.left)
    assert torch.allclose(folded.residual + folded.left @ folded.right, x.reshape(3, 20, 32), atol=1e-4)


def test_without_a_seed_torchs_generator_is_used() -> None:
    x = anisotropic(60, 32)
    torch.manual_seed(1)
    first, second = split(x, rank=4), split(x, rank=4)
    assert not torch.equal(first.right, second.right)
    torch.manual_seed(1)
    assert torch.equal(split(x, rank=4).right, first.right)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "meen"}, ValueError, "kind must be one of 'mean', 'spectral', .* got 'meen'; did you mean 'mean'"),
        ({"rnk": 3}, ValueError, "a setting of spectral must be one of .* did you mean 'rank'"),
        ({"kind": "mean", "fold": "no"}, ValueError, "fold must be true or false, got 'no'"),
        ({"factors": "nvpf4"}, ValueError, "factors must be one of .* did you mean 'nvfp4'"),
        ({"factors": "nvfp4 1x16 nearst"}, ValueError, "did you mean 'nearest'"),
        ({"partner": "e4m3 rows"}, ValueError, "partner must be one of .* did you mean 'e4m3 row'"),
        ({"sample": 0}, ValueError, "sample must be a share above 0"),
        ({"oversample": -1}, ValueError, "oversample must be a whole number, 0 or more"),
        ({"refresh": 1.5}, ValueError, "refresh must be a whole number"),
        ({"adaptive_residual": -1}, ValueError, "adaptive_residual must be a finite number above 0"),
        ({"x": torch.zeros(3)}, ValueError, "x must have two dimensions or more, got 1"),
        ({"x": torch.zeros(3, 3, dtype=torch.float64)}, TypeError, "got torch.float64"),
        ({"axis": 2}, ValueError, "axis must be 0 .* got 2"),
        ({"kind": ["mean", "mean"], "rank": 3}, ValueError, "settings must stand in the entries of the list"),
        ({"kind": Mean(), "fold": False}, ValueError, "settings must go with a kind's name, got fold"),
        ({"kind": 3}, ValueError, "kind must be a name"),
        ({"kind": ["spectral", "spectral"]}, ValueError, "one step of a chain may keep a basis"),
        ({"kind": ["mean", {"kind": "spectral", "partner": "residual"}]}, ValueError, "must have the same partner"),
    ],
)
def test_mistakes_say_what_was_wrong(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        split(**{"x": torch.zeros(4, 4), **arguments})


def test_below_the_public_function_a_seed_is_not_made_up() -> None:
    with pytest.raises(ValueError, match="seed must be given for a fresh basis"):
        Spectral().split(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="seed must be given for stochastic factors"):
        Mean(factors=SR).split(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="must be a matrix"):
        Mean().split(torch.zeros(4, 4, 4))


def test_rounding_to_bfloat16_is_torchs() -> None:
    every = torch.arange(-(2**31), 2**31, 2**11 - 1, dtype=torch.int64).to(torch.int32).view(torch.float32)
    ties = torch.arange(-(2**31) + 2**15, 2**31, 2**16, dtype=torch.int64).to(torch.int32).view(torch.float32)
    for x in (every, ties, torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3.4e38, 1e-45])):
        got, want = round_to_bfloat16(x), x.to(torch.bfloat16).float()
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.nan_to_num().view(torch.int32), want.nan_to_num().view(torch.int32))
