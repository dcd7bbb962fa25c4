"""What rounding to nearest does to the size of values: arXiv 2606.20381 says that E2M1 shrinks them, E1M2 does not."""

from __future__ import annotations

import pytest
import torch

from metis_compile.numerics import QuantSpec, fake_quantize
from metis_compile.numerics.elements import element_values, round_magnitude
from metis_compile.numerics.number_types import ELEMENTS


@pytest.mark.parametrize("name", ["e2m1", "e1m2"])
def test_the_mean_error_of_a_bin_is_what_its_neighbours_say(name: str) -> None:
    """E[round(t) - t] = (2 q - q_below - q_above) / 4 for t evenly spread over what is rounded to q."""
    element = ELEMENTS[name]
    grid = element_values(torch.arange(8, dtype=torch.int32), element).double()
    fine = (torch.arange(0, int(element.max * 4096)) + 0.5) / 4096
    rounded = round_magnitude(fine, element).double()
    for below, q, above in zip(grid, grid[1:], grid[2:], strict=False):
        mean = (rounded - fine.double())[rounded == q].mean()
        assert mean.item() == pytest.approx(((2 * q - below - above) / 4).item(), abs=1e-3)


def kept(x: torch.Tensor, spec: str) -> float:
    """<q, x> / <x, x>: how much of x is left in what it is rounded to."""
    q = fake_quantize(x, QuantSpec.parse(spec), 1)
    return float((q * x).sum() / (x * x).sum())


def test_uneven_steps_shrink_and_even_ones_do_not() -> None:
    """Normal values, as behind a Hadamard transform, in blocks of 16 under exact scales of float32."""
    x = torch.randn(4096, 1024)
    blocks = x.unflatten(1, (-1, 16))
    scaled = (blocks / blocks.abs().amax(2, keepdim=True)).flatten(1)  # the scale of each block then is 1 / 6
    e2m1, e1m2 = kept(scaled, "fp4 1x128 nearest"), kept(scaled, "ufp4 1x16 nearest")
    assert 0.985 < e2m1 < 0.997
    assert e1m2 == pytest.approx(1, abs=1e-3)
