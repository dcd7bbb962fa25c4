"""The differentiable gradient estimator against the function that it is the derivative of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metis_compile.numerics import QuantSpec, fake_quantize
from metis_compile.numerics.estimator import LARGEST, STEEPNESS, dge_derivative, dge_factor

SPECS = [QuantSpec.make("fp4"), QuantSpec.make("ufp4"), QuantSpec.make("nvfp4", select="mse")]
# Of f' over a step: 1 without a bound, of which the bound takes what lies closest to halfway.
BOUND = (LARGEST * STEEPNESS) ** (-STEEPNESS / (STEEPNESS - 1))
MEAN = LARGEST * BOUND + 1 - BOUND ** (1 / STEEPNESS)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def surrogate(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """f of arXiv 2501.17116 in each step of the grid, in double precision."""
    at = np.clip(np.searchsorted(grid, x, side="right") - 1, 0, len(grid) - 2)
    q, d = grid[at], np.diff(grid)[at]
    u = 2 * (x - q) / d - 1
    return q + d / 2 * (1 + np.sign(u) * np.abs(u) ** (1 / STEEPNESS))


@pytest.mark.parametrize(("format", "grid"), [("fp4", E2M1), ("ufp4", np.arange(8) / 2)])
def test_it_is_the_derivative_of_the_surrogate(format: str, grid: np.ndarray) -> None:
    x = np.random.default_rng(0).uniform(0, grid[-1], 4000)
    x = x[np.abs(x[:, None] - grid).min(1) > 1e-3]  # not at the corners of f
    h = 1e-6
    slope = (surrogate(x + h, grid) - surrogate(x - h, grid)) / (2 * h)
    got = dge_derivative(torch.from_numpy(x).float(), QuantSpec.make(format)).double().numpy()
    steep = slope >= 0.9 * LARGEST
    np.testing.assert_allclose(got[~steep], slope[~steep], rtol=2e-3)
    assert (got <= LARGEST).all()
    assert got[slope > 1.1 * LARGEST] == pytest.approx(LARGEST)
    assert steep.any()


def test_where_it_is_known() -> None:
    """1/k next to a number of the grid, the bound halfway to the next; steps are wider above 2 and above 4."""
    spec = QuantSpec.make("fp4")
    assert dge_derivative(torch.tensor(E2M1).float(), spec).tolist() == pytest.approx([1 / STEEPNESS] * 8)
    halfway = torch.tensor((E2M1[1:] + E2M1[:-1]) / 2).float()
    assert dge_derivative(halfway, spec).tolist() == [LARGEST] * 7


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_it_is_of_the_weight_under_its_scale(spec: QuantSpec, axis: int) -> None:
    """So that what rounding leaves alone has 1/k, and a factor on the weight changes nothing."""
    w = torch.randn(48, 32)
    rounded = fake_quantize(w, spec, axis)
    if spec.select is None:
        assert torch.allclose(dge_factor(rounded, spec, axis), torch.tensor(1 / STEEPNESS), atol=1e-2)
    assert torch.equal(dge_factor(4 * w, spec, axis), dge_factor(w, spec, axis))
    assert torch.equal(dge_factor(-w, spec, axis), dge_factor(w, spec, axis))
    assert dge_factor(w, spec, axis).mean() == pytest.approx(MEAN, abs=0.07)
    assert dge_factor(torch.full((16, 16), torch.nan), spec, axis).isnan().all()
