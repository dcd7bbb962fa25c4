"""Against the tables of the t distribution."""

import math

import pytest

from metis_compile.compare.student import quantile, two_sided


@pytest.mark.parametrize(
    ("freedom", "inside", "t"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.30265),
        (3, 0.95, 3.18245),
        (4, 0.95, 2.77645),
        (4, 0.99, 4.60409),
        (9, 0.95, 2.26216),
        (30, 0.95, 2.04227),
        (1000, 0.95, 1.96234),
    ],
)
def test_quantiles_and_probabilities(freedom: int, inside: float, t: float) -> None:
    assert quantile(inside, freedom) == pytest.approx(t, rel=2e-6)
    assert two_sided(t, freedom) == pytest.approx(1 - inside, rel=1e-4)
    assert two_sided(-t, freedom) == two_sided(t, freedom)


def test_the_ends() -> None:
    assert two_sided(0.0, 4) == 1
    assert two_sided(math.inf, 4) == pytest.approx(0, abs=1e-12)
    assert two_sided(math.inf, 5) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="degrees of freedom must be at least 1, got 0"):
        two_sided(1.0, 0)
    with pytest.raises(ValueError, match="must lie between 0 and 1, got 1"):
        quantile(1.0, 3)
