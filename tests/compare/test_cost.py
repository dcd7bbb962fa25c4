from types import SimpleNamespace
from typing import Any

import pytest

from metis_compile.compare import cost
from metis_compile.compare.cost import extra_flops, measure
from metis_compile.compare.run_config import RunConfig

BATCH, CONTEXT, WIDTH = 4, 16, 32


def added(arm: str, settings: Any) -> float:
    return extra_flops(RunConfig(text=arm), settings(width=WIDTH, batch=BATCH, context=CONTEXT)) - 1


def test_direct_quantization_adds_no_products(settings: Any) -> None:
    assert added("high", settings) == added("nvfp4", settings) == 0


def test_what_a_mean_costs_is_counted_in_the_graph(settings: Any) -> None:
    tokens = BATCH * CONTEXT
    attention = 4 * 2 * tokens * WIDTH * WIDTH
    linears = [(WIDTH, WIDTH)] * 4 + [(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    plain = sum(3 * 2 * tokens * i * o for i, o in linears) + 3 * 2 * tokens * WIDTH * 256
    # fprop: the mean's row times the weight; wgrad: the gradient's column sums (no product) times the mean's row.
    thin = sum(2 * i * o + 2 * i * o for i, o in linears)
    assert attention > 0
    assert added("averis", settings) == pytest.approx(thin / plain, rel=0.25)


def test_step_time_is_that_of_the_arm_over_full_precision(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By turns, so that neither is always the first."""
    order: list[str] = []

    class Clocked:
        def __init__(self, variant: Any, given: Any) -> None:
            self.policy, self.history = given.policy, SimpleNamespace(seconds=[])

        def step(self, step: int, tokens: Any, targets: Any) -> None:
            order.append(self.policy)
            if step:  # the first compiles
                self.history.seconds.append(2.0 if self.policy == "high" else 3.0)

    monkeypatch.setattr(cost, "Trainer", Clocked)
    found = measure(RunConfig(text="nvfp4"), settings(width=WIDTH, batch=BATCH, context=CONTEXT), 4)
    assert (found.step_ratio, found.step_seconds, found.baseline_seconds) == (1.5, 3.0, 2.0)
    assert order == ["high", "nvfp4", "nvfp4", "high"] * 2 + ["high", "nvfp4"]
