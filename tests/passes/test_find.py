"""Roles and groups from dependencies: weights, activations, gradients; fprop, dgrad, wgrad; and what is left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import capture_graphs, rows, sites_of
from tiny import MLP, NEAREST_POLICY, Attention, Tied
from torch import Tensor, nn

from metis_compile import Policy
from metis_compile.passes.graph.sites import GraphInputs
from metis_compile.passes.joint.find import find_sites

EVERYTHING = Policy.from_toml(
    """
    [recipe.all]
    weight = { format = "nvfp4" }
    activation = { format = "nvfp4" }
    gradient = { format = "nvfp4" }
    [[rule]]
    recipe = "all"
    """,
    name="everything.toml",
)


def test_linear_has_three_products() -> None:
    captured = capture_graphs(nn.Linear(32, 48), torch.randn(2, 8, 32, requires_grad=True), policy=EVERYTHING)
    assert rows(captured) == [
        ("fprop", "", "activation", "weight"),
        ("dgrad", "", "gradient", "weight"),
        ("wgrad", "", "gradient", "activation"),
    ]
    sizes = {s.gemm: (s.m, s.n, s.k) for s in sites_of(captured)}
    assert sizes == {"fprop": (16, 48, 32), "dgrad": (16, 32, 48), "wgrad": (48, 32, 16)}


def test_square_weight_and_square_input() -> None:
    """Everything is 16 x 16: only the graph can tell the operands apart."""
    captured = capture_graphs(nn.Linear(16, 16), torch.randn(16, 16, requires_grad=True), policy=EVERYTHING)
    assert rows(captured) == [
        ("fprop", "", "activation", "weight"),
        ("dgrad", "", "gradient", "weight"),
        ("wgrad", "", "gradient", "activation"),
    ]


def test_input_without_gradient_has_no_dgrad_and_frozen_weight_no_wgrad() -> None:
    assert [r[0] for r in rows(capture_graphs(nn.Linear(16, 16), torch.randn(16, 16), policy=EVERYTHING))] == [
        "fprop",
        "wgrad",
    ]
    frozen = nn.Linear(16, 16).requires_grad_(False)
    captured = capture_graphs(frozen, torch.randn(16, 16, requires_grad=True), policy=EVERYTHING)
    assert rows(captured) == [("fprop", "", "activation", "weight"), ("dgrad", "", "gradient", "weight")]


def test_no_grad_has_only_fprops() -> None:
    captured = capture_graphs(MLP(), torch.randn(16, 32), policy=EVERYTHING, grad=False)
    assert rows(captured) == [("fprop", "up", "activation", "weight"), ("fprop", "down", "activation", "weight")]
    assert captured.graphs[0].backward is None


def test_attention_products_have_no_weight() -> None:
    captured = capture_graphs(Attention(), torch.randn(2, 8, 32, requires_grad=True), policy="nvfp4")
    products = [s for s in sites_of(captured) if not s.has_weight]
    assert Counter(s.gemm for s in products) == {"fprop": 2, "dgrad": 4}
    assert all(s.op == "matmul" for s in products)
    assert all(s.reason is not None and "attention" not in s.module for s in products)
    assert all("has_weight=false" in str(s.reason) for s in products)
    linears = [s for s in sites_of(captured) if s.has_weight]
    assert Counter(s.gemm for s in linears) == {"fprop": 4, "dgrad": 4, "wgrad": 4}
    assert all(s.reason is None for s in linears)


def test_one_line_quantizes_attention_too() -> None:
    policy = Policy.from_toml('extends = "nvfp4"\nrecipe.attention = "nvfp4"')
    captured = capture_graphs(Attention(), torch.randn(2, 16, 32, requires_grad=True), policy=policy)
    assert all(s.reason is None for s in sites_of(captured))


def test_tied_weight_is_a_weight_in_both_uses() -> None:
    captured = capture_graphs(Tied(), torch.randint(0, 32, (2, 8)), policy=EVERYTHING)
    head = [s for s in sites_of(captured) if "embedding.weight" in s.weights]
    assert [(s.gemm, s.module) for s in head] == [("fprop", ""), ("wgrad", ""), ("dgrad", "")]


def test_weight_used_twice_and_in_two_linears() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x)))

    captured = capture_graphs(Shared(), torch.randn(16, 16, requires_grad=True), policy=EVERYTHING)
    assert Counter((s.gemm, s.module) for s in sites_of(captured)) == {
        ("fprop", "a"): 2,
        ("fprop", "b"): 1,
        ("dgrad", "a"): 2,
        ("dgrad", "b"): 1,
        ("wgrad", "a"): 2,
        ("wgrad", "b"): 1,
    }


def test_weight_computed_from_parameters() -> None:
    """A scaled, masked or merged weight is a weight; the product that makes it is one of two weights."""

    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Parameter(torch.randn(16, 16))
            self.a, self.b = nn.Parameter(torch.randn(16, 4)), nn.Parameter(torch.randn(4, 16))
            self.register_buffer("mask", torch.ones(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, (self.base + self.a @ self.b) * self.mask)

    found = rows(capture_graphs(Merged(), torch.randn(16, 16, requires_grad=True), policy=EVERYTHING))
    assert found[:2] == [("fprop", "", "weight", "weight"), ("fprop", "", "activation", "weight")]
    assert Counter(r[0] for r in found) == {"fprop": 2, "dgrad": 1, "wgrad": 3}


def test_product_of_a_weight_with_itself() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight @ self.weight.T)

    found = rows(capture_graphs(Gram(), torch.randn(16, 16, requires_grad=True), policy=EVERYTHING))
    assert Counter(r[0] for r in found) == {"fprop": 2, "dgrad": 1, "wgrad": 3}


def test_an_argument_times_itself_has_two_roles() -> None:
    """The one that the caller trains is a weight on the right: g R^T is of the left one, L^T g of the right one."""
    x = torch.randn(16, 16, requires_grad=True)
    for function in (lambda x: x.mT @ x, lambda x: x @ x, lambda x: x @ x.mT):
        found = rows(capture_graphs(function, x, policy=EVERYTHING))
        assert Counter((gemm, frozenset(roles)) for gemm, _, *roles in found) == {
            ("fprop", frozenset({"activation", "weight"})): 1,
            ("dgrad", frozenset({"gradient", "weight"})): 1,
            ("wgrad", frozenset({"gradient", "activation"})): 1,
        }


class Experts(nn.Module):
    """One matrix of a stack for each token, as a router chose."""

    def __init__(self, pick: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.pick = pick
        self.weight = nn.Parameter(torch.randn(4, 16, 32))

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        return x @ self.pick(self.weight, chosen)


@pytest.mark.parametrize(
    "pick",
    [lambda w, i: w[i], lambda w, i: w.mT[i].mT, lambda w, i: torch.index_select(w, 0, i)],
    ids=["index", "index of transposed", "index_select"],
)
def test_experts_picked_by_data_are_weights(pick: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, chosen = torch.randn(3, 8, 16, requires_grad=True), torch.tensor([2, 0, 2])
    captured = capture_graphs(Experts(pick), x, chosen, policy="nvfp4")
    assert Counter((s.gemm, s.weights, s.reason) for s in sites_of(captured)) == {
        (gemm, ("weight",), None): 1 for gemm in ("fprop", "dgrad", "wgrad")
    }


def test_rows_picked_by_data_are_activations() -> None:
    """An embedding table indexed by hand; and a table of rank 3 of which the rows are picked."""

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.tables = nn.Parameter(torch.randn(10, 16)), nn.Parameter(torch.randn(2, 10, 16))
            self.up = nn.Linear(16, 32, bias=False)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.up(self.table[tokens]) + self.up(self.tables[:, tokens]).sum(0)

    found = rows(capture_graphs(Lookup(), torch.randint(0, 10, (16,)), policy="nvfp4"))
    assert Counter(r[0] for r in found) == {"fprop": 2, "dgrad": 2, "wgrad": 2}
    assert {r[2:] for r in found if r[0] == "fprop"} == {("activation", "weight")}


def test_grouped_products_of_sorted_tokens() -> None:
    """What each expert multiplies: rows of tokens in fprop and dgrad, what is contracted in wgrad."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 32, 48, dtype=torch.bfloat16))

        def forward(self, x: Tensor, offs: Tensor) -> Tensor:
            return torch._grouped_mm(x, self.weight, offs=offs)

    x = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    offs = torch.tensor([16, 64], dtype=torch.int32)
    found = sites_of(capture_graphs(Grouped(), x, offs, policy=EVERYTHING))
    assert {(s.gemm, s.op, s.lhs.role, s.rhs.role, s.m, s.n, s.k) for s in found if s.lhs and s.rhs} == {
        ("fprop", "grouped_mm", "activation", "weight", 64, 48, 32),
        ("dgrad", "grouped_mm", "gradient", "weight", 64, 32, 48),
        ("wgrad", "grouped_mm", "activation", "gradient", 32, 48, 64),
    }
    assert {s.reason for s in found} == {None}
    assert {s.weights for s in found} == {("weight",)}


def test_grouped_products_of_columns_and_of_batches() -> None:
    """Without ends a batch, and tokens as columns: the same products as of tokens by row, and of a batch."""
    w = torch.randn(2, 48, 32, dtype=torch.bfloat16)
    offs = torch.tensor([16, 64], dtype=torch.int32)

    def columns(x: Tensor) -> Tensor:
        return torch._grouped_mm(w, x.T, offs=offs)

    def batch(x: Tensor) -> Tensor:
        return torch._grouped_mm(x.view(2, 32, 32), w.mT)

    x = torch.randn(64, 32, dtype=torch.bfloat16)
    for function, sizes in ((columns, (1, 64, 48, 32)), (batch, (2, 32, 48, 32))):
        (site,) = sites_of(capture_graphs(function, x, policy=EVERYTHING, grad=False))
        assert site.reason is None
        assert (site.batch, site.m, site.n, site.k) == sizes


def test_rows_whose_number_depends_on_data() -> None:
    """The tokens of one expert: their number is known when the graph runs, and not before."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(16, 32)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.up(x[mask.nonzero().squeeze(1)])

    mask = torch.arange(24) % 3 == 0
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        captured = capture_graphs(Masked(), torch.randn(24, 16, requires_grad=True), mask, policy="nvfp4")
    assert Counter((s.gemm, s.reason) for s in sites_of(captured)) == {
        ("fprop", None): 1,
        ("dgrad", None): 1,
        ("wgrad", None): 1,
    }
    assert captured.saved_bytes > 0, "by Inductor's guess of the size"


def test_weight_on_the_left() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 32))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ x

    found = rows(capture_graphs(Left(), torch.randn(32, 8, requires_grad=True), policy=EVERYTHING))
    assert sorted(found) == [
        ("dgrad", "", "weight", "gradient"),
        ("fprop", "", "weight", "activation"),
        ("wgrad", "", "gradient", "activation"),
    ]


def test_functional_linear_with_plain_tensors() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, w)

    x, w = torch.randn(16, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
    captured = capture_graphs(f, x, w, policy="nvfp4")
    assert sorted(rows(captured)) == [
        ("dgrad", "", "gradient", "weight"),
        ("fprop", "", "activation", "weight"),
        ("wgrad", "", "gradient", "activation"),
    ]
    assert all(s.has_weight and s.reason is None for s in sites_of(captured)), "no parameter, but no attention either"


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("linear", lambda x, w: F.linear(x, w.T)),
        ("matmul", lambda x, w: x @ w),
        ("mm", lambda x, w: torch.mm(x.flatten(0, 1), w)),
        ("addmm", lambda x, w: torch.addmm(w[0], x.flatten(0, 1), w)),
        ("bmm", lambda x, w: torch.bmm(x, w.expand(2, 32, 32))),
        ("baddbmm", lambda x, w: torch.baddbmm(w[:16], x, w.expand(2, 32, 32))),
        ("einsum", lambda x, w: torch.einsum("bti,io->bto", x, w)),
    ],
)
def test_every_way_to_write_a_product(op: str, function: object) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            return function(x, self.weight)

    captured = capture_graphs(Model(), torch.randn(2, 16, 32, requires_grad=True), policy=EVERYTHING)
    found = sites_of(captured)
    assert {s.op for s in found} == {op}
    assert Counter(s.gemm for s in found) == {"fprop": 1, "dgrad": 1, "wgrad": 1}
    assert all(s.reason is None and s.weights == ("weight",) for s in found)


def test_addbmm_is_one_product_and_its_backward_is_of_a_weight() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 32, 48))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addbmm(x.new_zeros(48), x, self.weight)

    captured = capture_graphs(Summed(), torch.randn(2, 16, 32, requires_grad=True), policy="nvfp4")
    reasons = {s.gemm: s.reason for s in sites_of(captured)}
    assert reasons == {"fprop": None, "dgrad": None, "wgrad": None}
    assert {s.gemm: (s.batch, s.k) for s in sites_of(captured)} == {
        "fprop": (1, 64),
        "dgrad": (2, 48),
        "wgrad": (2, 16),
    }
    assert all(s.weights == ("weight",) for s in sites_of(captured))


def test_names_and_depth() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([MLP(), MLP()]), "lm_head": nn.Linear(32, 32)})

    def forward(x: Tensor) -> Tensor:
        for block in model["blocks"]:
            x = block(x)
        return model["lm_head"](x)

    fprops = [s for s in sites_of(capture_graphs(forward, torch.randn(16, 32), policy="nvfp4")) if s.gemm == "fprop"]
    assert [(s.module, s.block) for s in fprops] == [
        ("blocks.0.up", (0, 2)),
        ("blocks.0.down", (0, 2)),
        ("blocks.1.up", (1, 2)),
        ("blocks.1.down", (1, 2)),
        ("lm_head", None),
    ]
    assert fprops[0].source.startswith("tiny.py:")
    assert "high" in str(fprops[-1].reason)


def test_operands_that_share_a_tensor_have_one_base() -> None:
    captured = capture_graphs(Attention(), torch.randn(2, 16, 32, requires_grad=True), policy=NEAREST_POLICY)
    graph = captured.graphs[0].joint_before
    assert graph is not None
    sites = find_sites(graph.graph, GraphInputs(parameters={}))
    bases = {s.lhs.base for s in sites if s.gemm == "fprop" and s.op == "linear" and s.lhs is not None}
    assert len(bases) == 2, "q, k and v read one tensor, the output projection another"
