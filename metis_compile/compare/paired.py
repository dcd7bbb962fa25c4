"""Differences between two arms trained from the same seeds: interval, test, and which of them are ties."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from metis_compile.compare.student import quantile, two_sided

__all__ = ["INSIDE", "LEVEL", "Difference", "half_width", "holm", "paired"]

INSIDE = 0.95  # of confidence intervals
LEVEL = 0.05  # a corrected p-value below it is significant


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of ``arm`` minus ``base`` over the seeds that both have, in points of their gaps' percent."""

    arm: str
    base: str
    seeds: int
    mean: float
    half_width: float | None  # of the 95 % interval; None for a single seed, or where a run diverged
    p: float | None  # of the paired t-test, two-sided; None likewise
    corrected: float | None = None  # p after Holm's correction for all the tests of a table

    @property
    def significant(self) -> bool:
        """Whether it is more than chance; otherwise the two are a tie."""
        return self.corrected is not None and self.corrected < LEVEL


def paired(arm: str, mine: dict[int, float], base: str, theirs: dict[int, float]) -> Difference:
    """The difference of two arms' values by seed. Raises ValueError where no seed is common to both."""
    differences = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
    if not differences:
        raise ValueError(f"{arm!r} and {base!r} have no seed in common")
    n, mean = len(differences), statistics.fmean(differences)
    half = half_width(differences)
    p = None
    if half is not None:
        error = statistics.stdev(differences) / math.sqrt(n)
        # Without any deviation a mean other than 0 is as sure as can be, and one of 0 is no difference.
        p = two_sided(mean / error, n - 1) if error else float(mean == 0)
    return Difference(arm=arm, base=base, seeds=n, mean=mean, half_width=half, p=p)


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % confidence interval of the mean of normal ``values``, by Student's t."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return quantile(INSIDE, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same with ``corrected``: the chance that any of them is called significant wrongly stays below LEVEL."""
    tested = sorted((d for d in differences if d.p is not None), key=lambda d: d.p or 0.0)
    corrected: dict[int, float] = {}
    highest = 0.0
    for i, difference in enumerate(tested):
        assert difference.p is not None
        highest = max(highest, min(1.0, difference.p * (len(tested) - i)))
        corrected[id(difference)] = highest
    return [replace(d, corrected=corrected.get(id(d))) for d in differences]
