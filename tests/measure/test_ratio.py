import pytest

from metis_compile.measure.ratio import Ratio


def test_the_ratio_of_each_round_and_not_of_the_medians() -> None:
    # A machine that slows down threefold half way: the ratios stay what they are.
    assert Ratio.of([2, 2, 6, 6], [1, 1, 3, 3]) == Ratio(median=2, low=2, high=2)


def test_quartiles_lie_among_the_rounds() -> None:
    assert Ratio.of([1, 2, 3, 4, 5], [1] * 5) == Ratio(median=3, low=2, high=4)
    assert Ratio.of([3], [2]) == Ratio(median=1.5, low=1.5, high=1.5)
    assert str(Ratio.of([1, 2, 3], [2, 2, 2])) == "1.00x (0.75-1.25)"


def test_series_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match="zip"):
        Ratio.of([1, 2], [1])
    with pytest.raises(ValueError, match="at least one round"):
        Ratio.of([], [])
