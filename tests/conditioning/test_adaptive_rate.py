"""The adaptive spectral learning rate against a full decomposition."""

from __future__ import annotations

import pytest
import torch
from anisotropic import anisotropic

from metis_compile.conditioning import Conditioned, Spectral, adapt_rate


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_singular_values_move_as_the_formula_says(orthonormal: bool, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(40, 5, generator=generator) @ torch.diag(torch.tensor([9.0, 4, 2, 1, 0.1])) * scale
    right = torch.randn(5, 30, generator=generator)
    if orthonormal:
        right = torch.linalg.qr(right.T)[0].T
    residual = torch.randn(40, 30, generator=generator)
    got = adapt_rate(Conditioned(residual, left, right), residual_factor=1.5)
    u, s, v = torch.linalg.svd((left.double() @ right.double()), full_matrices=False)
    u, s, v = u[:, :5], s[:5], v[:5]
    want = u * (2 * s / (1 + s / s[0])) @ v
    assert (got.left.double() @ got.right.double() - want).abs().max() < 1e-5 * want.abs().max()
    assert torch.equal(got.right, right)
    assert torch.equal(got.residual, residual * 1.5)


def test_zero_lower_rank_and_what_is_not_finite() -> None:
    zero = adapt_rate(Conditioned(torch.ones(4, 3), torch.zeros(4, 2), torch.eye(2, 3)))
    assert zero.left.eq(0).all()
    assert torch.equal(zero.residual, torch.full((4, 3), 2.0))
    left = torch.randn(20, 1) @ torch.randn(1, 3)
    one = adapt_rate(Conditioned(torch.zeros(20, 8), left, torch.eye(3, 8)))
    assert torch.allclose(one.left, left, atol=1e-5)  # the largest stays as it is
    left[3, 1] = torch.nan
    assert adapt_rate(Conditioned(torch.zeros(20, 8), left, torch.eye(3, 8))).left[3].isnan().all()


def test_as_a_setting_of_the_split() -> None:
    x = anisotropic(60, 40)
    basis = torch.linalg.qr(torch.randn(40, 4))[0].T
    plain = Spectral(rank=4).split(x, basis=basis)
    got = Spectral(rank=4, adaptive_rate=True, adaptive_residual=3.0).split(x, basis=basis)
    assert all(map(torch.equal, got, adapt_rate(plain, residual_factor=3.0)))
    assert not torch.allclose(got.left @ got.right, plain.left @ plain.right)
