"""Whatever a product is written as, its bases are kept where their shapes are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import capture_graphs, sites_of
from kept_bases import POLICY, batch, compiled, policy, same, state, step
from tiny import MLP
from torch import Tensor, nn

import metis_compile

SPLIT = {("fprop", "activation"), ("wgrad", "activation"), ("dgrad", "gradient"), ("wgrad", "gradient")}


def test_as_many_directions_are_kept_as_are_asked_for() -> None:
    run = compiled(nn.Linear(64, 48), policy("rank_least = 40", "rank_least = 40"))
    step(run, batch(columns=64))
    assert state(run)["weight.gradient"].shape == (40, 48)


def test_a_basis_that_cannot_be_kept_is_made_anew_and_explain_says_so() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 40))

        def forward(self, x: Tensor) -> Tensor:
            return torch.mm(self.weight, x)

    model, x = Turned(), batch(rows=40, columns=23).requires_grad_()
    with metis_compile.capture() as captured:
        step(compiled(model, dynamic=True), x)
    notes = {(site.gemm, o.role): o.note for site in sites_of(captured) for o in site.operands}
    symbolic = "basis made anew each step: it has the symbolic shape"
    assert all(site.reason is None for site in sites_of(captured))
    assert {key for key, note in notes.items() if str(note).startswith(symbolic)} == SPLIT
    torch._dynamo.mark_dynamic(x, 1)
    explained = metis_compile.explain(model, x, policy=POLICY)
    assert symbolic in explained.site("", "fprop").treatment["activation"]
    torch.compiler.reset()
    static = metis_compile.explain(model, batch(rows=40, columns=23), policy=POLICY)
    assert "made anew" not in str([site.treatment for site in static.sites])


def test_split_weights_are_kept_where_every_size_is_dynamic() -> None:
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
def test_tensordot_keeps_bases_of_several_dimensions(
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


class Called(nn.Module):
    """A function of the input and of parameters of these shapes."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.weights = function, nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


WITHOUT_A_NAME: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "GRUCell": (nn.GRUCell(33, 24), (20, 33)),
    "LSTMCell": (nn.LSTMCell(33, 24), (20, 33)),
    "RNNCell": (nn.RNNCell(33, 24), (20, 33)),
    "multi_dot": (Called(lambda x, a, b: torch.linalg.multi_dot([x, a, b]), (33, 40), (40, 24)), (20, 33)),
    "inner": (Called(torch.inner, (24, 33)), (5, 20, 33)),
    "cdist": (Called(torch.cdist, (30, 33)), (40, 33)),
    "einsum": (Called(lambda x, w: torch.einsum("bsnd,hnd->bsh", x, w), (33, 4, 8)), (2, 20, 4, 8)),
    "einsum of what lies first": (Called(lambda x, w: torch.einsum("fh,bsh->bsf", w, x), (24, 33)), (2, 20, 33)),
    "addbmm": (Called(lambda x, w, b: torch.addbmm(b, x, w, alpha=2), (3, 33, 24), (24,)), (3, 20, 33)),
    "MultiheadAttention": (Called(lambda x: ATTENTION(x, x, x)[0]), (2, 20, 32)),
}
ATTENTION = nn.MultiheadAttention(32, 4, batch_first=True)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", WITHOUT_A_NAME)
def test_products_that_no_call_names_keep_theirs(name: str, dynamic: bool) -> None:
    """Under the default policy, that keeps bases: what multiplies is a decomposition of what the model calls."""
    model, shape = WITHOUT_A_NAME[name]
    captured = capture_graphs(model, torch.randn(shape, requires_grad=True), policy="metis", dynamic=dynamic)
    sites = [site for site in sites_of(captured) if site.reason is None]
    assert sites
    assert {operand.note for site in sites for operand in site.operands} == {None}
