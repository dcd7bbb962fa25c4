"""The mark `long` and the option `--long`: tests that `make test` leaves to `make test-all`.

They are the long tail of what the other tests of their file sample: the rest of a product of formats, shapes and GPUs.
Other tests go through more by themselves if the fixture `long` is true. A test that is asked for by its name runs in
any case.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        choices=("not", "also", "only"),
        default="not",
        help="whether to run the long tail: the tests marked long, and more cases of some others",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.long == "also" or any("::" in argument for argument in config.args):
        return
    long = {item for item in items if item.get_closest_marker("long") is not None}
    if config.option.long == "not":
        wanted = set(items) - long
    else:
        wanted = long | {item for item in items if "long" in getattr(item, "fixturenames", ())}
    left = [item for item in items if item not in wanted]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item in wanted]


@pytest.fixture
def long(pytestconfig: pytest.Config) -> bool:
    """Whether the long tail is wanted, for tests that go through many cases by themselves."""
    return bool(pytestconfig.option.long != "not")


def sampled(cases: Iterable[Any], keep: Callable[..., bool] | Iterable[Any]) -> list[Any]:
    """For parametrize: the cases, all of which are marked long but those that `keep` names or is true of.

    keep: values, or a function of a case's values.
    """
    cases, kept = list(cases), [] if callable(keep) else list(keep)
    found, seen = [], []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        if keep(*values) if callable(keep) else case in kept:
            seen.append(case)
            found.append(case)
        else:
            found.append(pytest.param(*values, marks=pytest.mark.long))
    assert callable(keep) or len(seen) == len(kept), f"kept are {kept}, and the cases have {seen}"
    return found


def each_once(*axes: Sequence[Any]) -> list[Any]:
    """For parametrize: the product of the axes, all marked long but as many as the longest axis has values.

    In these every value of every axis is at least once; the first of the shorter axes changes fastest.
    """
    lengths = [len(axis) for axis in axes]
    longest = max(range(len(axes)), key=lambda axis: lengths[axis])

    def wanted(places: tuple[int, ...]) -> bool:
        step, stride = places[longest], 1
        for axis, (place, length) in enumerate(zip(places, lengths, strict=True)):
            if axis == longest:
                continue
            enough = lengths[longest] // stride >= length
            if place != (step // stride if enough else step) % length:
                return False
            stride *= length
        return True

    places = itertools.product(*map(range, lengths))
    cases = {at: tuple(axis[place] for axis, place in zip(axes, at, strict=True)) for at in places}
    return [
        pytest.param(*case, marks=() if wanted(at) else pytest.mark.long, id="-".join(map(named, case)))
        for at, case in cases.items()
    ]


def named(value: Any) -> str:
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else str(value)
