"""What `make test` leaves to `make test-all`: never a value that no other case has."""

from __future__ import annotations

import itertools

import pytest
from long_tail import each_once, sampled


@pytest.mark.parametrize("lengths", [(2, 2), (4, 3), (4, 2, 3), (3, 2, 2), (14, 2, 2), (2, 12)], ids=str)
def test_every_value_is_kept_once(lengths: tuple[int, ...]) -> None:
    cases = each_once(*map(range, lengths))
    assert [case.values for case in cases] == list(itertools.product(*map(range, lengths)))
    kept = [case.values for case in cases if not case.marks]
    assert len(kept) == max(lengths)
    assert [set(values) for values in zip(*kept, strict=True)] == [set(range(length)) for length in lengths]


def test_what_is_not_kept_is_marked() -> None:
    cases = sampled([(80, "a"), (90, "a"), (90, "b")], lambda capability, name: name == "a")
    assert cases[:2] == [(80, "a"), (90, "a")]
    assert [(case.values, [mark.name for mark in case.marks]) for case in cases[2:]] == [((90, "b"), ["long"])]
    assert sampled("ab", ["a"])[0] == "a"


def test_what_is_to_be_kept_must_be_there() -> None:
    with pytest.raises(AssertionError, match=r"kept are .*'c'"):
        sampled("ab", ["a", "c"])
