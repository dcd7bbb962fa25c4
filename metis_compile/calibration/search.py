"""Which choice of each group to make: the convex frontiers of cost and error, merged into one path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Way(Generic[T]):
    """One choice for a group. Errors of groups add up, and so do costs."""

    what: T
    cost: float
    error: float
    tie: float = 0.0  # of two that cost and err the same, the one with less of this


def frontier(ways: Sequence[Way[T]]) -> list[Way[T]]:
    """The ways that save most error per cost, cheapest first: the lower convex hull."""
    found: list[Way[T]] = []
    for way in sorted(ways, key=lambda w: (w.cost, w.error, w.tie)):
        if found and way.error >= found[-1].error:
            continue
        while len(found) > 1 and _slope(found[-2], way) <= _slope(found[-2], found[-1]):
            found.pop()
        found.append(way)
    return found


def path(frontiers: Sequence[Sequence[Way[T]]]) -> list[tuple[Way[T], ...]]:
    """Choices for all groups, from the cheapest to the one that errs least: each step saves most error per cost.

    Each is the best of all choices at its cost; between two steps there may be better ones.
    """
    moves = [
        (_slope(ways[i - 1], ways[i]), group, i) for group, ways in enumerate(frontiers) for i in range(1, len(ways))
    ]
    at = [0] * len(frontiers)
    found = [tuple(ways[0] for ways in frontiers)]
    for _, group, i in sorted(moves):
        at[group] = i
        found.append(tuple(ways[i] for ways, i in zip(frontiers, at, strict=True)))
    return found


def _slope(a: Way[T], b: Way[T]) -> float:
    """Change of the error per cost: of useful steps below 0, and the lower the better."""
    return (b.error - a.error) / (b.cost - a.cost) if b.cost > a.cost else float("-inf")
