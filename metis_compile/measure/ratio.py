"""How two things that were timed in turn compare: the ratio of each round, its median and quartiles."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ratio"]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median over rounds of mine / theirs, of the same round, and its quartiles.

    What disturbs one round, on a machine that does other things too, disturbs both sides of it.
    """

    median: float
    low: float  # first quartile
    high: float  # third quartile

    @classmethod
    def of(cls, mine: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        """The ratio of two series of equal length, at least one round long. Raises ValueError for others."""
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        if not ratios:
            raise ValueError("a ratio needs at least one round")
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return cls(median=median, low=low, high=high)

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f}-{self.high:.2f})"
