"""Thin products that are written out: the same results, and none left."""

from __future__ import annotations

import copy

import pytest
import torch
from graphs import capture_graphs
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from metis_compile import Policy
from metis_compile.passes.lower import lower
from metis_compile.passes.thin import write_out_thin

aten = torch.ops.aten


def thin(gm: fx.GraphModule, most: int) -> int:
    """How many matrix products are of so few columns and rows, and are marked."""
    products = gm.graph.find_nodes(op="call_function", target=aten.mm.default)
    sizes = [(*n.args[0].meta["val"].shape, n.meta["val"].shape[1]) for n in products if n.meta.get("metis_tail")]  # type: ignore[union-attr]
    return sum(k <= most and min(rows, columns) >= 16 for rows, k, columns in sizes)


@pytest.mark.parametrize("rank", [1, 3, 7, 8])
def test_written_out(rank: int) -> None:
    treatment = f'{{ format = "nvfp4", split = {{ kind = "spectral", rank = {rank}, refresh = 1 }} }}'
    texts = [f"{role} = {treatment}" for role in ("weight", "activation", "gradient")]
    chosen = Policy.from_toml("\n".join(["[recipe.r]", *texts, "[[rule]]", 'recipe = "r"']))
    x = torch.randn(96, 64, requires_grad=True)
    after = capture_graphs(nn.Linear(64, 80, bias=False), x, policy=chosen).graphs[0].joint_after
    assert after is not None
    values = [torch.randn(n.meta["val"].shape) for n in after.graph.find_nodes(op="placeholder")]
    torch.manual_seed(0)
    expected = after(*values)
    count = thin(after, most=rank)
    assert count >= 3 * 3, "each tensor's residual, and each product's tails"
    written = fx.GraphModule(after, copy.deepcopy(after.graph))
    assert write_out_thin(written.graph) == (count if rank < 8 else 0)
    assert thin(written, most=7) == 0
    written.recompile()
    torch.manual_seed(0)
    for a, b in zip(written(*values), expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_only_of_conditioned_operands() -> None:
    gm = make_fx(torch.mm)(torch.randn(40, 3), torch.randn(3, 40))
    lower(gm.graph)
    assert gm.graph.find_nodes(op="call_function", target=aten.mm.default)
