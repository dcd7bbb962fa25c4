"""The path of choices, beside all choices there are."""

from __future__ import annotations

import random
from itertools import product

from metis_compile.calibration.search import Way, frontier, path


def way(cost: float, error: float, tie: float = 0.0) -> Way[str]:
    return Way(what=f"{cost} {error} {tie}", cost=cost, error=error, tie=tie)


def test_a_frontier_is_the_lower_hull() -> None:
    ways = [way(1, 10), way(2, 9), way(3, 2), way(4, 3), way(5, 1), way(6, 1)]
    assert [(w.cost, w.error) for w in frontier(ways)] == [(1, 10), (3, 2), (5, 1)]


def test_of_equals_the_one_with_less_of_the_tie() -> None:
    assert frontier([way(1, 0, 3), way(1, 0, 2), way(2, 0, 0)]) == [way(1, 0, 2)]


def test_every_choice_of_the_path_is_the_best_at_its_cost() -> None:
    generator = random.Random(0)
    groups = [[way(generator.random(), generator.random()) for _ in range(6)] for _ in range(4)]
    everything = [(sum(w.cost for w in some), sum(w.error for w in some)) for some in product(*groups)]
    found = path([frontier(group) for group in groups])
    assert len(found) > 4
    for choice in found:
        cost, error = sum(w.cost for w in choice), sum(w.error for w in choice)
        assert error <= min(e for c, e in everything if c <= cost + 1e-12) + 1e-12
    assert [sum(w.cost for w in c) for c in found] == sorted(sum(w.cost for w in c) for c in found)


def test_a_group_with_one_way_has_no_step() -> None:
    assert path([[way(1, 1)], [way(1, 5), way(2, 0)]]) == [(way(1, 1), way(1, 5)), (way(1, 1), way(2, 0))]
