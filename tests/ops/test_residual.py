"""metis::residual: the difference of `metis_compile.conditioning`, traced, faked, and written out."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from metis_compile.conditioning import residual
from metis_compile.conditioning.operators import using
from metis_compile.ops.residual import RESIDUAL
from metis_compile.passes.graph.calls import ResidualCall
from metis_compile.passes.graph.operators import GraphOperators
from metis_compile.passes.lowering.decompose_residual import write_residuals

ROWS, COLUMNS, RANK = 20, 33, 3
X = torch.randn(ROWS, COLUMNS)
GIVEN = {
    "mean": torch.randn(1, COLUMNS),
    "left": torch.randn(ROWS, RANK),
    "right": torch.randn(RANK, COLUMNS),
}
WAYS = [["mean"], ["left", "right"], ["mean", "left", "right"]]


def taken(way: list[str]) -> dict[str, torch.Tensor]:
    return {name: GIVEN[name] for name in way}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS, ids="+".join)
def test_is_the_difference(way: list[str], dtype: torch.dtype) -> None:
    x = torch.randn(ROWS, COLUMNS).to(dtype)
    wanted = x.float() - GIVEN["mean"] if "mean" in way else x.float()
    if "left" in way:
        wanted = wanted - GIVEN["left"] @ GIVEN["right"]
    made = RESIDUAL(x, **taken(way))
    assert made.dtype == torch.float32
    assert torch.equal(made, wanted)
    assert torch.equal(residual(x, **taken(way)), wanted)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("tracing", ["fake", "symbolic"])
@pytest.mark.parametrize("way", WAYS, ids="+".join)
def test_is_one_node_that_can_be_written_out(way: list[str], tracing: Any, transposed: bool) -> None:
    x = torch.randn(COLUMNS, ROWS).T if transposed else torch.randn(ROWS, COLUMNS)

    def run(x: torch.Tensor, given: list[torch.Tensor]) -> torch.Tensor:
        with using(GraphOperators()):
            return residual(x, **dict(zip(way, given, strict=True))) * 2

    given = list(taken(way).values())
    gm = make_fx(run, tracing_mode=tracing)(x, given)
    (node,) = (n for n in gm.graph.nodes if n.target is RESIDUAL)
    wanted = RESIDUAL(x, **taken(way))
    assert [int(s) for s in node.meta["val"].stride()] == list(wanted.stride()), "real and fake lie alike"
    call = ResidualCall.of(node)
    assert call is not None
    assert [name for name in GIVEN if getattr(call, name) is not None] == way
    assert write_residuals(gm.graph, leave=lambda call: True) == 0
    assert write_residuals(gm.graph) == 1
    assert not any(n.target is RESIDUAL for n in gm.graph.nodes)
    gm.recompile()
    assert torch.equal(gm(x, given), wanted * 2)


def test_a_residual_of_a_residual_is_written_out_too() -> None:
    def run(x: torch.Tensor, mean: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return RESIDUAL(RESIDUAL(x, mean), None, left, right)

    gm = make_fx(run, tracing_mode="fake")(X, *GIVEN.values())
    assert write_residuals(gm.graph) == 2
    gm.graph.lint()
    gm.recompile()
    assert torch.equal(gm(X, *GIVEN.values()), run(X, *GIVEN.values()))


def test_counts_its_product() -> None:
    for way, flops in zip(WAYS, [0, 2 * ROWS * COLUMNS * RANK, 2 * ROWS * COLUMNS * RANK], strict=True):
        with FlopCounterMode(display=False) as counter:
            RESIDUAL(X, **taken(way))
        assert counter.get_total_flops() == flops


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"x": X.long()}, TypeError, "x must be float32, bfloat16 or float16, got int64"),
        ({"x": X[0]}, ValueError, "x must be a matrix [rows, columns], got 1 dimensions"),
        ({"mean": None}, ValueError, "mean or factors must be given, got neither"),
        ({"mean": GIVEN["mean"][0]}, ValueError, "mean must have shape [1, 33], got [33]"),
        ({"mean": GIVEN["mean"].double()}, TypeError, "mean must be float32, got float64"),
        ({"left": GIVEN["left"]}, ValueError, "left and right must both be given or both be None, got one of them"),
        ({"left": GIVEN["left"][0], "right": GIVEN["right"]}, ValueError, "left must be a matrix [rows, k], got 1"),
        ({"left": GIVEN["left"], "right": GIVEN["right"].T}, ValueError, "right must have shape [3, 33], got [33, 3]"),
        ({"left": GIVEN["left"].bfloat16(), "right": GIVEN["right"]}, TypeError, "left must be float32, got bfloat16"),
        ({"mean": GIVEN["mean"].to("meta")}, ValueError, "mean must be on cpu like x, got meta"),
    ],
)
def test_arguments_are_checked(given: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(f"metis::residual: {said}")):
        RESIDUAL(**{"x": X, "mean": GIVEN["mean"], **given})
