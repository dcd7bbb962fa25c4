from typing import Any

import pytest

from metis_compile.compare.arm import Arm
from metis_compile.compare.cost import extra_flops

BATCH, CONTEXT, WIDTH = 4, 16, 32


def added(arm: str, settings: Any) -> float:
    return extra_flops(Arm(text=arm), settings(width=WIDTH, batch=BATCH, context=CONTEXT)) - 1


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
