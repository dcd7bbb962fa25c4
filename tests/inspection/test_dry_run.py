"""A dry run: what it is independent of, what it leaves as it was, and models whose tensors hold nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from long_tail import sampled
from tiny import MLP, Attention
from torch import Tensor, nn

import metis_compile
from metis_compile.compare.graphs import rewritten_graphs
from metis_compile.compat import new_fake_mode


class Broken(nn.Module):
    """Two graphs; the second is a function of its own to Dynamo."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def sizes(explanation: metis_compile.Explanation) -> set[type]:
    return {type(size) for s in explanation.sites for size in (s.batch, s.m, s.n, s.k)}


@pytest.mark.parametrize("make", [MLP, Broken])
def test_sizes_are_numbers_in_every_call(make: Callable[[], nn.Module]) -> None:
    model = make()
    for rows in (16, 32, 48):
        found = metis_compile.explain(model, torch.randn(rows, 32), policy="nvfp4")
        assert sizes(found) == {int}
        assert {s.m for s in found.sites if s.gemm == "fprop"} == {rows}
    assert sizes(metis_compile.explain(Broken(64), torch.randn(16, 64), policy="nvfp4")) == {int}


def test_a_compile_after_explaining_is_what_it_would_have_been() -> None:
    model = Broken()
    for rows in (16, 32):
        metis_compile.explain(model, torch.randn(rows, 32), policy="nvfp4")
    with metis_compile.capture() as captured:
        torch.compile(model, backend="metis", options={"policy": "nvfp4"})(torch.randn(64, 32))
    assert [site.m for graph in captured.graphs for site in graph.sites if site.gemm == "fprop"] == [64, 64]


def test_what_was_learned_before_has_no_part_in_it() -> None:
    model = Broken()
    compiled = torch.compile(model, backend="eager")
    for rows in (16, 32):
        compiled(torch.randn(rows, 32))
    assert sizes(metis_compile.explain(model, torch.randn(48, 32), policy="nvfp4")) == {int}


def test_graphs_of_a_comparison_have_sizes_that_are_numbers() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.mlp = nn.Embedding(16, 32), MLP()

        def forward(self, tokens: Tensor) -> Tensor:
            return self.mlp(self.embedding(tokens))

    for length in (16, 32):
        (graph,) = rewritten_graphs(Embedded(), torch.zeros(1, length, dtype=torch.int64), "nvfp4")
        assert graph.sites[0].m == length


def test_any_number_of_explanations() -> None:
    model, x = Broken(), torch.randn(16, 32)
    with torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=4):
        for _ in range(6):
            assert metis_compile.explain(model, x, policy="nvfp4").graphs == 2


class Changing(nn.Module):
    """Changes everything about itself that a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(32, 32), nn.BatchNorm1d(32)
        self.last: Tensor | None = torch.zeros(32)
        self.total = torch.zeros(32)
        self.register_buffer("mean", torch.zeros(32))
        self.calls, self.seen = 0, [0]
        self.scale = nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        y = self.norm(self.linear(x)) + self.scale
        with torch.no_grad():
            self.mean = 0.9 * self.mean + 0.1 * y.mean(0)
            self.total += y.mean(0)
            self.scale.mul_(0.5)
        self.last = y.detach()
        self.late = y.detach()
        self.calls += 1
        self.seen.append(self.calls)
        torch._dynamo.graph_break()
        self.linear.weight.requires_grad_(False)
        self.register_buffer("fresh", torch.ones(3))
        self.norm.eval()
        return y


def test_a_model_that_changes_itself_is_put_back() -> None:
    model, x = Changing(), torch.randn(16, 32)
    before = {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()}
    held = dict(model.state_dict(keep_vars=True)), model.last, model.total, x.clone()
    metis_compile.explain(model, x, policy="nvfp4")
    assert model.state_dict(keep_vars=True).keys() == before.keys()
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is held[0][name]
        assert torch.equal(tensor, before[name]), name
    assert model.last is held[1]
    assert model.total is held[2]
    assert not model.total.any()
    assert torch.equal(x, held[3])
    assert not hasattr(model, "late")
    assert (model.calls, model.seen, model.norm.training) == (0, [0], True)
    assert model.linear.weight.requires_grad


def test_a_module_that_a_function_reads_is_put_back() -> None:
    model, x = Changing(), torch.randn(16, 32)
    for call in (lambda x: model(x) + 1, model.forward, functools.partial(model.forward)):
        metis_compile.explain(call, x, policy="nvfp4")
        assert model.calls == 0
        assert torch.equal(model.scale, torch.ones(32))


def test_gradients_and_a_pending_backward_are_left_alone() -> None:
    class Learning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(32, 32), nn.BatchNorm1d(32, momentum=0.0)
            self.register_buffer("factor", torch.full((32,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            if self.training:
                self.linear(x).sum().backward()
            return self.norm(self.linear(x)) * self.factor

    model, x = Learning(), torch.randn(16, 32)
    loss = model.eval()(x).sum()
    model.train()
    gradient = model.linear.weight.grad = torch.ones(32, 32)
    metis_compile.explain(model, x, policy="nvfp4")
    assert model.linear.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(32, 32))
    loss.backward()  # a buffer that is written to, be it the same value, would be an error here


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp, self.norm = Attention(), MLP(dropout=0.1), nn.LayerNorm(32)
        self.register_buffer("scale", torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return self.mlp(self.norm(x) * self.scale)


def explained(policy: str) -> list[dict[str, Any]]:
    found = [metis_compile.explain(Block(), torch.randn(2, 16, 32), policy=policy)]
    with torch.device("meta"):
        model, x = Block(), torch.randn(2, 16, 32)
        found.append(metis_compile.explain(model, x, policy=policy))
    assert all(t.is_meta for t in model.state_dict().values())
    assert metis_compile.explain(lambda x: model(x), x, policy=policy).saved_bytes == found[0].saved_bytes
    with new_fake_mode():
        model, x = Block(), torch.randn(2, 16, 32)
        found.append(metis_compile.explain(model, x, policy=policy))
    found.append(metis_compile.explain(model, x, policy=policy))
    return [explanation.to_dict() for explanation in found]


@pytest.mark.parametrize("policy", sampled(["nvfp4", "best", "metis-paper"], ["best"]))
def test_meta_and_fake_tensors_are_explained_as_real_ones(policy: str) -> None:
    real, *others = explained(policy)
    assert real["saved_bytes"] > 0
    assert others == [real] * 3


def test_a_tied_parameter_on_meta_stays_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embedding(tokens))

    tokens = torch.zeros(16, dtype=torch.int64)
    real = metis_compile.explain(Tied(), tokens, policy="mxfp8")
    model = Tied().to("meta")
    model.head.weight = model.embedding.weight
    assert metis_compile.explain(model, tokens.to("meta"), policy="mxfp8") == real
    assert model.head.weight is model.embedding.weight


def test_a_value_that_is_not_there_is_one_clear_error() -> None:
    def model(x: Tensor) -> Tensor:
        return x @ x if float(x.sum()) > 0 else x

    with pytest.raises(RuntimeError, match="reads the value of a tensor, and its tensors have none"):
        metis_compile.explain(model, torch.ones(16, 16, device="meta"), policy="nvfp4")


def test_nested_tensors_are_explained_as_they_are_compiled() -> None:
    """Which torch can't compare, and whose ragged size is no number."""
    rows = torch.nested.nested_tensor([torch.randn(5, 32), torch.randn(11, 32)], layout=torch.jagged)
    before = rows.values().clone()
    found = metis_compile.explain(MLP(), rows, policy="nvfp4")
    assert [s.reason for s in found.sites] == [None] * 5
    assert torch.equal(rows.values(), before)


def test_what_dynamo_leaves_to_eager_is_said() -> None:
    @torch._dynamo.disable
    def eagerly(x: Tensor) -> Tensor:
        return x @ x

    assert "nothing was compiled" in str(metis_compile.explain(eagerly, torch.randn(16, 16), policy="nvfp4"))
