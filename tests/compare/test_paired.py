import pytest

from metis_compile.compare.paired import Difference, half_width, holm, paired


def test_a_difference_is_taken_seed_by_seed() -> None:
    mine, theirs = {0: 1.0, 1: 2.0, 2: 3.0, 7: 99.0}, {0: 0.5, 1: 1.0, 2: 1.5, 8: -99.0}
    found = paired("a", mine, "b", theirs)
    # 0.5, 1, 1.5: a mean of 1, a deviation of 0.5, t = 1 / (0.5 / sqrt(3)) = 3.4641
    assert (found.seeds, found.mean) == (3, 1.0)
    assert found.half_width == pytest.approx(4.30265 * 0.5 / 3**0.5, rel=1e-5)
    assert found.p == pytest.approx(0.0741799, rel=1e-5)
    assert not found.significant, "not before it is corrected"
    with pytest.raises(ValueError, match="'a' and 'b' have no seed in common"):
        paired("a", {0: 1.0}, "b", {1: 1.0})


def test_what_cannot_be_tested() -> None:
    for values in ({0: 1.0}, {0: 1.0, 1: float("nan")}):
        found = paired("a", values, "b", {0: 0.0, 1: 0.0})
        assert found.half_width is None
        assert found.p is None
    assert half_width([2.0]) is None


def test_equal_differences_are_certain_and_none_is_no_difference() -> None:
    assert paired("a", {0: 1.0, 1: 1.0}, "b", {0: 0.0, 1: 0.0}).p == 0
    assert paired("a", {0: 1.0, 1: 1.0}, "b", {0: 1.0, 1: 1.0}).p == 1


def test_tests_of_one_table_are_corrected_together() -> None:
    given = [
        Difference(arm=str(p), base="b", seeds=5, mean=1.0, half_width=0.1, p=p) for p in (0.04, 0.001, None, 0.02, 0.9)
    ]
    made = holm(given)
    assert [d.arm for d in made] == [d.arm for d in given]
    # by rank: 4 * 0.001, 3 * 0.02, the larger of that and 2 * 0.04, and 0.9
    assert [d.corrected for d in made] == pytest.approx([0.08, 0.004, None, 0.06, 0.9])
    assert [d.significant for d in made] == [False, True, False, False, False]
    assert [d.corrected for d in holm(given[:1] + given[3:4])] == pytest.approx([0.04, 0.04])
