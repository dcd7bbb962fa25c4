"""The room that a graph sets aside for the bases it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kept_bases import batch, compiled, policy, same, state, step
from tiny import MLP
from torch import Tensor, nn

from metis_compile.state import room


def test_there_is_room_for_as_many_directions_as_are_asked_for() -> None:
    run = compiled(nn.Linear(64, 48), policy("rank_least = 40", "rank_least = 40"))
    step(run, batch(columns=64))
    assert state(run)["weight#0.backward"].numel() >= 40 * 48


def test_a_product_without_room_says_what_to_do() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 40))

        def forward(self, x: Tensor) -> Tensor:
            return torch.mm(self.weight, x)

    with pytest.raises(Exception, match=r"symbolic shape.*refresh = 1 keeps nothing"):
        step(compiled(Turned(), dynamic=True), torch.randn(40, 23))


def test_split_weights_have_room_where_every_size_is_dynamic() -> None:
    sizes = []
    for dynamic in (False, True):
        torch.compiler.reset()
        run = compiled(MLP(), "metis-paper", dynamic=dynamic, fullgraph=True)
        step(run, batch())
        sizes.append({key: t.numel() for key, t in state(run).items()})
    assert sizes[0] == sizes[1] != {}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    ("weight", "x", "dims"),
    [
        ((16, 6, 32), (3, 10, 16), 1),
        ((6, 32, 16), (3, 10, 6, 32), 2),
        ((16, 6, 32), (3, 10, 6, 32), ([2, -1], [1, 2])),
    ],
    ids=["several given", "several contracted", "transposed"],
)
def test_tensordot_has_room_for_bases_of_several_dimensions(
    weight: tuple[int, ...], x: tuple[int, ...], dims: Any, dynamic: bool
) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(weight))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tensordot(x, self.weight, dims)

    model = Product()
    for chosen in ("metis-paper", "metis"):
        torch.compiler.reset()
        run = compiled(model, chosen, dynamic=dynamic, fullgraph=True)
        step(run, torch.randn(x))
        first = state(run)
        step(run, torch.randn(x))
        assert not same(first, state(run))  # bases of the product are kept


def test_room_for_a_share_of_tensordot_is_that_of_the_smaller_side() -> None:
    """Batches and positions are one side of the activation: 4096 rows here have 16 columns, not a share of 4096."""
    gm = torch.fx.symbolic_trace(lambda x, w: torch.tensordot(x, w, dims=1))
    for node, shape in zip(gm.graph.nodes, ((64, 64, 16), (16, 4, 8), (64, 64, 4, 8)), strict=False):
        node.meta["example_value"] = torch.empty(shape, device="meta")
    found = room(gm, policy(activation="rank = 0.1", gradient="rank = 0.1"))
    x, w, y = 2 * 4096 + 1, 2 * 32 + 1, 4 * 4096 + 1  # 0.1 of 16, of 16 and of 32, rounded up
    assert found == (x + w, x + w + y)
