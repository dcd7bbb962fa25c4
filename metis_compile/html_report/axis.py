"""From values to places along an axis, and where its ticks are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metis_compile.html_report.blocks import Scale

__all__ = ["Axis"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """low and high, both finite, are at the places `start` and `end`, in pixels."""

    low: float
    high: float
    start: float
    end: float
    scale: Scale = "linear"

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, scale: Scale, margin: float = 0.0) -> Axis:
        """An axis on which every finite value has a place. margin: the share of its length left at each end."""
        found = [v for v in values if math.isfinite(v) and (scale != "log" or v > 0)] or [0.0 if scale != "log" else 1]
        low, high = _moved(min(found), scale), _moved(max(found), scale)
        if low == high:
            low, high = low - 0.5, high + 0.5
        extra = margin * (high - low)
        return cls(low=low - extra, high=high + extra, start=start, end=end, scale=scale)

    def place(self, value: float) -> float | None:
        """None for what has no place on it."""
        if not math.isfinite(value) or (self.scale == "log" and value <= 0):
            return None
        return self.start + (_moved(value, self.scale) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int) -> list[tuple[float, str]]:
        """(place, label), some `about` many."""
        return [(place, f"{v:g}") for v in self._values(about) if (place := self.place(v)) is not None]

    def _values(self, about: int) -> list[float]:
        from matplotlib.ticker import MaxNLocator

        if self.scale == "linear":
            found = MaxNLocator(about, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
            return [float(v) for v in found if self.low <= v <= self.high]
        # Round values, as many of each decade as there is room for.
        exponents = range(math.floor(-12), 16)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            positive = [float(f"{f}e{e}") for e in exponents for f in factors]
            found = positive if self.scale == "log" else [0.0, *(s * v for v in positive if v >= 1 for s in (1, -1))]
            inside = sorted(v for v in found if self.low <= _moved(v, self.scale) <= self.high)
            if len(inside) <= about + 1:
                break
        else:
            inside = inside[:: math.ceil(len(inside) / about)]
        if len(inside) < 2:
            low, high = _back(self.low, self.scale), _back(self.high, self.scale)
            between = MaxNLocator(about, steps=[1, 2, 5, 10]).tick_values(low, high)
            return [float(v) for v in between if low <= v <= high]
        return inside


def _moved(value: float, scale: Scale) -> float:
    if scale == "log":
        return math.log10(value)
    if scale == "symlog" and abs(value) > 1:
        return math.copysign(1 + math.log10(abs(value)), value)
    return value


def _back(value: float, scale: Scale) -> float:
    if scale == "log":
        return 10**value
    if scale == "symlog" and abs(value) > 1:
        return math.copysign(10 ** (abs(value) - 1), value)
    return value
