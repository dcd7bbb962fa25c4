"""The sums of a tensor core against the same rules in Python's fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from metis_compile.numerics import QuantSpec, fake_quantize
from metis_compile.numerics.tensor_core import GROUP, sum_toward_zero, tensor_core_product


def toward_zero(exact: Fraction) -> np.float32:
    """The float32 next to an exact number on the side of zero."""
    nearest = np.float32(float(exact))
    while abs(Fraction(float(nearest))) > abs(exact):
        nearest = np.nextafter(nearest, np.float32(0))
    while abs(Fraction(float(after := np.nextafter(nearest, np.float32(np.inf) * np.sign(exact))))) <= abs(exact):
        nearest = after
    return nearest


def values(*shape: int) -> torch.Tensor:
    """Elements of E2M1 under E4M3 scales, as a tensor core reads them."""
    x = torch.randn(*shape) * torch.randn(*shape).exp()
    return fake_quantize(x * (448 * 6 / x.abs().max()), QuantSpec.make("nvfp4"), 1)


@pytest.mark.parametrize("k", [GROUP, 4 * GROUP, 5 * GROUP + 16])
def test_it_is_what_the_rules_say(k: int) -> None:
    a, b = values(3, k), values(4, k)
    got = tensor_core_product(a, b, 0.25)
    for i in range(3):
        for j in range(4):
            total = np.float32(0)
            for start in range(0, k, GROUP):
                pairs = zip(a[i, start : start + GROUP].tolist(), b[j, start : start + GROUP].tolist(), strict=True)
                part = np.float32(float(sum(Fraction(x) * Fraction(y) for x, y in pairs)))
                total = toward_zero(Fraction(float(total)) + Fraction(float(part))) if part or total else total
            assert got[i, j].item() == float(total) / 4


def test_sums_are_cut_off_and_never_rounded_up() -> None:
    a = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, 0.0])
    b = torch.tensor([2.0**-24, -(2.0**-24), 1.5 * 2.0**-24, -1.5 * 2.0**-24, -(2.0**-26), 3.0])
    ulp = 2.0**-23
    assert sum_toward_zero(a, b).tolist() == [1.0, -1.0, 1.0, -1.0, 2.0 - ulp, 3.0]
    x, y = torch.randn(2000), torch.randn(2000) * 2.0 ** torch.randint(-20, 20, (2000,))
    exact, got = x.double() + y.double(), sum_toward_zero(x, y).double()
    assert (got.abs() <= exact.abs()).all()
    assert ((exact - got).abs() <= got.abs() * ulp).all()


def test_shapes() -> None:
    with pytest.raises(ValueError, match=r"a and b must be \[m, k\] and \[n, k\], got"):
        tensor_core_product(torch.zeros(3, 4), torch.zeros(4, 3))
