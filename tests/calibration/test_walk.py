"""From what the sums say to what the whole policy costs and errs."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from metis_compile.calibration.candidates import CalibrationError
from metis_compile.calibration.result import Considered
from metis_compile.calibration.walk import Walk


@dataclass(kw_only=True)
class Told(Walk):
    """A path whose numbers are given: of the whole policies, and of the sums."""

    wholes: list[float]
    errors: list[float]
    sums: list[float]
    asked: list[tuple[str, int]] = field(default_factory=list)

    def cost(self, at: int) -> float:
        self.asked.append(("cost", at))
        return self.wholes[at]

    def effect(self, at: int) -> Considered:
        self.asked.append(("effect", at))
        return Considered(loss=self.errors[at], gradient=0.0)

    def predicted_effect(self, at: int) -> Considered:
        return Considered(loss=self.sums[at], gradient=0.0)


def walk(**given: Any) -> Told:
    path: list[Any] = [{"a": {"x": "nvfp4"}}, {"a": {"x": "best"}}, {"a": {"x": "mxfp8"}}, {"a": {"x": "high"}}]
    known = {
        "estimates": [0.5, 0.6, 0.7, 1.0],
        "wholes": [0.5, 0.6, 0.7, 1.0],
        "errors": [0.4, 0.2, 0.1, 0.0],
        "sums": [0.4, 0.2, 0.1, 0.0],
    }
    costs: Any = SimpleNamespace(device=SimpleNamespace(name="b200"))
    measured: Any = None
    return Told(path=path, measured=measured, costs=costs, error="loss", **(known | given))


def test_the_sums_are_right() -> None:
    assert walk().within_cost(0.65) == (1, 0)
    assert walk().within_error(0.25) == (1, 0)


def test_what_costs_more_as_a_whole_goes_back() -> None:
    assert walk(wholes=[0.5, 0.66, 0.7, 1.0]).within_cost(0.65) == (0, 1)


def test_what_costs_less_as_a_whole_goes_on() -> None:
    assert walk(wholes=[0.5, 0.6, 0.64, 1.0]).within_cost(0.65) == (2, 1)


def test_what_errs_more_as_a_whole_goes_on() -> None:
    assert walk(errors=[0.4, 0.3, 0.1, 0.0]).within_error(0.25) == (2, 1)


def test_what_errs_less_as_a_whole_goes_back() -> None:
    assert walk(errors=[0.2, 0.2, 0.1, 0.0]).within_error(0.25) == (0, 1)


def test_no_step_is_measured_that_need_not_be() -> None:
    found = walk()
    found.within_error(0.25)
    assert found.asked == [("effect", 1), ("effect", 1), ("effect", 0)]


def test_nothing_keeps_the_budget() -> None:
    with pytest.raises(CalibrationError, match=r"costs 0\.3x of unquantized or less on b200; the nearest costs 0\.5x"):
        walk().within_cost(0.3)
    said = r"errs 0\.05 of the loss or less; the nearest errs 0\.1 at a cost of 0\.7x"
    with pytest.raises(CalibrationError, match=said):
        walk().within_error(0.05)


def test_nothing_gains() -> None:
    found = walk()
    found.path = [found.path[3]]
    found.errors = found.sums = [0.0]
    with pytest.raises(CalibrationError, match="unquantized is the cheapest there"):
        found.within_error(0.05)
