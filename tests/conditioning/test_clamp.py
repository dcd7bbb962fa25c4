"""Clamping of outliers against NumPy's sort, and what a product of the two parts is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metis_compile.conditioning import Clamp, prepare, product, split
from metis_compile.numerics import QuantSpec, fake_quantize

SPEC = QuantSpec.make("fp4")


@pytest.mark.parametrize("quantile", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("shape", [(40, 50), (7, 33), (1, 1)])
def test_the_bounds_are_elements_of_the_tensor(quantile: float, shape: tuple[int, int]) -> None:
    """Those at floor(q n) and floor((1 - q) n) of all n in order."""
    x = torch.randn(shape) * torch.randn(shape).exp()
    residual, left, right = split(x, "clamp", quantile=quantile)
    ordered, n, parts = np.sort(x.numpy().ravel()), x.numel(), round(quantile * 1000)
    low, high = ordered[(1000 - parts) * n // 1000], ordered[parts * n // 1000]
    assert torch.equal(residual, x.clamp(low, high))
    assert torch.equal(left, x - residual)
    assert torch.equal(right, torch.eye(shape[1]))
    assert (left != 0).sum() <= 2 * (n - parts * n // 1000)


@pytest.mark.parametrize("partner", ["high", "residual"])
def test_what_a_product_reads(partner: str) -> None:
    """x Y^T ~= Q(clamp(x)) Q(Y)^T + (x - clamp(x)) P(Y)^T."""
    x, y = torch.randn(50, 48) ** 3, torch.randn(24, 48)
    how = Clamp(quantile=0.95, partner=partner)
    residual, left, _ = made = how.split(x)
    got = product(prepare(x, axis=1, spec=SPEC, split=made, partner=partner), prepare(y, axis=1, spec=SPEC))
    qy = fake_quantize(y, SPEC, 1)
    expected = fake_quantize(residual, SPEC, 1) @ qy.mT + left @ (y if partner == "high" else qy).mT
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_symbolic_sizes_give_the_same_bounds() -> None:
    run = torch.compile(lambda x: Clamp(quantile=0.9).split(x).residual, backend="eager", dynamic=True)
    for rows in (7, 12):
        x = torch.randn(rows, 33)
        assert torch.equal(run(x), Clamp(quantile=0.9).split(x).residual)


def test_nothing_to_clamp() -> None:
    residual, left, right = split(torch.zeros(0, 5), "clamp")
    assert residual.shape == left.shape == (0, 5)
    assert right.shape == (5, 5)


def test_what_is_not_finite_stays_so() -> None:
    for special in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(20, 30)
        x[3, 4] = special
        residual, left, _ = split(x, "clamp")
        assert not (residual[3, 4] + left[3, 4]).isfinite()


@pytest.mark.parametrize("quantile", [0.5, 1, 1.5, True, "0.9"])
def test_mistakes(quantile: object) -> None:
    with pytest.raises(ValueError, match=r"quantile must be a number above 0\.5 and below 1, got"):
        Clamp(quantile=quantile)  # type: ignore[arg-type]
