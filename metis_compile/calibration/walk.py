"""Along the path of choices to the one that keeps the budget as a whole, and not only by the sum of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metis_compile.calibration.candidates import CalibrationError, Cells
from metis_compile.calibration.costs import Costs
from metis_compile.calibration.groups import Group
from metis_compile.calibration.measured import Measured
from metis_compile.calibration.result import Considered, Figures
from metis_compile.calibration.writing import text_of
from metis_compile.policy import Policy
from metis_compile.policy.treatment import HIGH


@dataclass(kw_only=True)
class Walk:
    """path: choices from the cheapest to the one that errs least. estimates: their costs, by the sum of groups."""

    path: Sequence[Mapping[Group, Cells]]
    estimates: Sequence[float]
    measured: Measured
    costs: Costs
    error: str  # "loss" or "gradient"
    _cost: dict[int, float] = field(default_factory=dict)
    _effect: dict[int, Considered] = field(default_factory=dict)

    def within_cost(self, limit: float) -> tuple[int, int]:
        """(place, steps from where the sums have it) of the last choice that costs no more."""
        start = at = max((i for i, cost in enumerate(self.estimates) if cost <= limit), default=0)
        while at >= 0 and self.cost(at) > limit:
            at -= 1
        if at < 0:
            cheapest = min(range(len(self.path)), key=self._known_cost)
            raise CalibrationError(
                f"metis: nothing that was considered costs {limit:g}x of unquantized or less on "
                f"{self.costs.device.name}; the nearest costs {self.cost(cheapest):.4g}x"
            )
        while at >= start and at + 1 < len(self.path) and self.cost(at + 1) <= limit:
            at += 1
        return at, abs(at - start)

    def within_error(self, limit: float) -> tuple[int, int]:
        """(place, steps from where the sums have it) of a choice that errs no more, when the one before errs more."""
        last = len(self.path) - 1
        start = at = min((i for i in range(last + 1) if self._of(self.predicted_effect(i)) <= limit), default=last)
        while at < last and self._of(self.effect(at)) > limit:
            at += 1
        if self._quantizes_nothing(at) or self._of(self.effect(at)) > limit:
            quantizing = [i for i in range(last + 1) if not self._quantizes_nothing(i)]
            nearest = min(quantizing, key=lambda i: self._of(self.predicted_effect(i)), default=None)
            what = f"no choice that quantizes, and gains on {self.costs.device.name}, errs"
            if nearest is None:
                raise CalibrationError(f"metis: {what} at all: unquantized is the cheapest there")
            raise CalibrationError(
                f"metis: {what} {limit:g} of the {self.error} or less; the nearest errs "
                f"{self._of(self.effect(nearest)):.4g} at a cost of {self.cost(nearest):.4g}x"
            )
        while at <= start and at > 0 and self._of(self.effect(at - 1)) <= limit:
            at -= 1
        return at, abs(at - start)

    def policy(self, at: int) -> Policy:
        return Policy.from_toml(text_of(self.path[at], [], lambda rule: []))

    def cost(self, at: int) -> float:
        """As predicted for the whole policy."""
        if at not in self._cost:
            self._cost[at] = self.costs.of(self.policy(at)).ratio
        return self._cost[at]

    def _known_cost(self, at: int) -> float:
        return self._cost.get(at, self.estimates[at])

    def effect(self, at: int) -> Considered:
        """As measured of the whole policy."""
        if at not in self._effect:
            self._effect[at] = self.measured.whole(self.policy(at))
        return self._effect[at]

    def predicted_effect(self, at: int) -> Considered:
        return self.measured.sum(self.path[at])

    def figures(self, at: int) -> Figures:
        return _figures(self.cost(at), self.effect(at))

    def predicted(self, at: int) -> Figures:
        return _figures(self.estimates[at], self.predicted_effect(at))

    def _of(self, effect: Considered) -> float:
        return effect.loss if self.error == "loss" else effect.gradient

    def _quantizes_nothing(self, at: int) -> bool:
        return all(name == HIGH for cells in self.path[at].values() for name in cells.values())


def _figures(cost: float, effect: Considered) -> Figures:
    return Figures(cost=cost, loss=effect.loss, gradient=effect.gradient)
