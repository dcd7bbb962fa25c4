"""Factors that take in what quantizing the residual takes along them."""

from __future__ import annotations

import pytest
import torch
from anisotropic import anisotropic

from metis_compile.conditioning import Chain, Mean, Spectral, prepare, split
from metis_compile.numerics import QuantSpec, fake_quantize
from metis_compile.policy import Policy, PolicyError

Q = QuantSpec.make("nvfp4")
SEED = torch.tensor([3])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rows", [1, 50])
def test_the_formula(axis: int, rows: int) -> None:
    """L + (R - Q(R)) F^T, so that no error is left along F."""
    x = anisotropic(rows, 40, 1)
    how = Spectral(rank=3, compensate=True)
    split = how.split(x, axis=axis, seed=SEED)
    made = prepare(x, axis=axis, spec=Q, split=split, compensate=how)
    quantized = fake_quantize(split.residual, Q, axis)
    left = split.left + (split.residual - quantized) @ split.right.T
    wanted = left if axis == 1 else split.right.T
    assert made.outer is not None
    assert made.inner is not None
    torch.testing.assert_close(made.outer, wanted, rtol=1e-5, atol=1e-5)
    whole = made.plain + made.outer @ made.inner
    error = x - (whole if axis == 1 else whole.T)
    assert (error @ split.right.T).norm() < 0.01 * error.norm(), "but for the basis being rounded to bfloat16"
    plain = prepare(x, axis=axis, spec=Q, split=split)
    assert plain.outer is not None
    assert plain.inner is not None
    before = x - (quantized + split.left @ split.right)
    torch.testing.assert_close(
        error.norm() ** 2 + (before @ split.right.T).norm() ** 2, before.norm() ** 2, rtol=0.02, atol=1e-6
    )


def test_of_a_chain_the_last_step_alone() -> None:
    x = anisotropic(50, 40, 1)
    how = Chain(steps=(Mean(), Spectral(rank=3, compensate=True)))
    split = how.split(x, axis=1, seed=SEED)
    made = prepare(x, axis=1, spec=Q, split=split, compensate=how)
    error = split.residual - fake_quantize(split.residual, Q, 1)
    assert made.outer is not None
    assert torch.equal(made.outer[:, 0], split.left[:, 0])
    torch.testing.assert_close(made.outer[:, 1:], split.left[:, 1:] + error @ split.right[1:].T, rtol=1e-5, atol=1e-5)


def test_who_compensates() -> None:
    chain = Chain(steps=(Mean(), Spectral(compensate=True)))
    assert chain.compensate
    assert Spectral(compensate=True).compensate
    assert not any(how.compensate for how in (Mean(), Spectral(), Chain(steps=(Mean(), Spectral()))))
    with pytest.raises(ValueError, match="compensate must be false for all steps of a chain but the last"):
        Chain(steps=(Spectral(compensate=True), Mean()))
    with pytest.raises(ValueError, match="compensate must be false where adaptive_rate"):
        Spectral(compensate=True, adaptive_rate=True)
    with pytest.raises(ValueError, match="compensate must be true or false, got 1"):
        Spectral(compensate=1)  # type: ignore[arg-type]


def test_a_split_alone_is_not_compensated() -> None:
    """It does not know how the residual will be quantized: the parts still make up x."""
    x = anisotropic(50, 40, 1)
    compensated, plain = (split(x, "spectral", rank=3, seed=SEED, compensate=flag) for flag in (True, False))
    assert all(map(torch.equal, compensated, plain))
    assert (compensated.residual + compensated.left @ compensated.right - x).abs().max() < 1e-5 * x.abs().max()


def test_in_a_policy_file_the_error_names_the_key() -> None:
    text = """
    [recipe.r]
    weight = "nvfp4"
    activation = { format = "nvfp4", split = { kind = "spectral", compensate = "yes" } }
    gradient = "nvfp4"
    """
    with pytest.raises(PolicyError, match="compensate"):
        Policy.from_toml(text)
