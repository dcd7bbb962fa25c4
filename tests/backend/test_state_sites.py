"""What is kept is that of a site of the model, whatever graph serves it."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import eager_backend
from kept_bases import POLICY, batch, compiled, policy, same, state, step
from tiny import MLP
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

import metis_compile
from metis_compile.ops import state as operators

AUTO = policy("rank_least = 2, track_share = 0.5", "rank = 0.2")  # ranks that depend on how many rows there are


class Blocks(nn.Module):
    """Two MLPs, perhaps checkpointed, perhaps with a graph break between them; attention without a weight before."""

    def __init__(self, *, checkpointed: bool = False, broken: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MLP() for _ in range(2))
        self.checkpointed, self.broken = checkpointed, broken

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + (checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x))
            if self.broken:
                torch._dynamo.graph_break()
        return x


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def evaluating(model: nn.Module) -> None:
    model.eval()


@pytest.mark.parametrize(
    ("other", "change"),
    [
        (batch(3, rows=24), None),
        (batch(3).T.contiguous().T, None),
        (batch(3), evaluating),
    ],
    ids=["another size", "other strides", "eval with gradients"],
)
@pytest.mark.parametrize("chosen", [POLICY, AUTO], ids=["rank", "rank by rows"])
def test_graphs_of_one_module_share_its_bases(
    other: Tensor, change: Callable[[nn.Module], None] | None, chosen: Any
) -> None:
    """Each of the two graphs goes on where the other left off, so that every basis moves in every step."""
    model = MLP(dropout=0.1)
    run = compiled(model, chosen, dynamic=False)
    counters.clear()
    for x in (batch(0), batch(1)):
        step(run, x, x)
    first, graphs_before = state(run), graphs()
    if change is not None:
        change(model)
    step(run, other, other)
    assert graphs() == graphs_before + 1, "or this test says nothing"
    second = state(run)
    assert second.keys() == first.keys()
    assert {key: t.shape for key, t in second.items()} == {key: t.shape for key, t in first.items()}
    assert not any(torch.equal(first[key], second[key]) for key in first)
    model.train()
    step(run, batch(2), batch(2))
    assert graphs() == graphs_before + 1
    assert not any(torch.equal(second[key], value) for key, value in state(run).items())


@pytest.mark.parametrize("dynamic", [None, False])
def test_a_run_with_a_short_last_batch_resumes_bit_for_bit(dynamic: bool | None) -> None:
    """The process that resumes meets the sizes in another order, and its first graph is not the one that went on."""

    def train(model: nn.Module, run: Any, steps: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for i in steps:
            torch.manual_seed(i)
            rows = 24 if i % 3 == 2 else 40
            step(run, batch(i, rows), batch(i + 10, rows) / rows)
            optimizer.step()
            optimizer.zero_grad()

    model = MLP()
    run = compiled(model, AUTO, dynamic=dynamic)
    train(model, run, range(4))
    weights, kept = copy.deepcopy(model.state_dict()), metis_compile.state_dict(run)
    train(model, run, range(4, 8))
    whole = {**model.state_dict(), **state(run)}
    torch.compiler.reset()
    model = MLP()
    metis_compile.load_state_dict(model, kept)
    run = compiled(model, AUTO, dynamic=dynamic)
    model.load_state_dict(weights)
    train(model, run, range(4, 8))
    assert same(whole, {**model.state_dict(), **state(run)})


def whole(model: nn.Module) -> Any:
    return compiled(model)


def blocks(model: Any) -> Any:
    for layer in model.layers:
        layer.compile(backend=eager_backend(POLICY))
    return model


def wrapped(model: Any) -> Any:
    for i, layer in enumerate(model.layers):
        model.layers[i] = checkpoint_wrapper(layer)
    return compiled(nn.ModuleDict({"model": model})["model"])


CUT: dict[str, tuple[dict[str, bool], Callable[[Any], Any]]] = {
    "whole": ({}, whole),
    "blocks": ({}, blocks),
    "checkpointed": ({"checkpointed": True}, whole),
    "checkpointed blocks": ({"checkpointed": True}, blocks),
    "checkpoint_wrapper": ({}, wrapped),
    "graph breaks": ({"broken": True}, whole),
}


def test_a_state_fits_however_a_model_is_cut_and_wrapped() -> None:
    """And the steps from there are the same."""
    torch.manual_seed(0)
    start, saved = Blocks(), {}
    run = compiled(start)
    for i in range(2):
        step(run, batch(i), batch(i + 10))
    kept, expected = metis_compile.state_dict(run), None
    assert list(kept) == [f"layers.{i}.{name}.weight" for i in range(2) for name in ("up", "down")]
    for name, (how, compile_it) in CUT.items():
        torch.compiler.reset()
        model = Blocks(**how)
        model.load_state_dict(start.state_dict())
        metis_compile.load_state_dict(model, kept)
        run = compile_it(model)
        step(run, batch(2), batch(12))
        saved[name] = state(run)
        expected = expected or saved[name]
        assert saved[name].keys() == expected.keys(), name
        for key in expected:
            torch.testing.assert_close(saved[name][key], expected[key], rtol=0, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.parametrize("order", ["load wrap step", "wrap load step", "wrap step load", "load step wrap"])
def test_loading_comes_before_or_after_anything(order: str) -> None:
    start = MLP()
    run = compiled(start)
    for i in range(2):
        step(run, batch(i))
    kept = metis_compile.state_dict(run)
    model: Any = copy.deepcopy(start)
    for what in order.split():
        if what == "load":
            assert metis_compile.load_state_dict(model, kept) == []
        elif what == "wrap":
            model = torch.compile(checkpoint_wrapper(getattr(model, "_orig_mod", model)), backend=eager_backend(POLICY))
        elif order.startswith("wrap step"):
            step(model, batch(9))  # what came before loading is forgotten
        else:
            model = model if isinstance(model, torch._dynamo.OptimizedModule) else compiled(model)
            step(model, batch(2))
    if order.startswith("wrap step"):
        step(model, batch(2))
    step(run, batch(2))
    found, expected = state(model), state(run)
    assert found.keys() == expected.keys()
    for key in expected:  # a wrapped graph sums in another order
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-6)


def test_products_without_a_weight_and_functions_have_sites_too() -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return q @ k.T

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = Attention()
            self.weight = nn.Parameter(torch.randn(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            return self.core(x @ self.weight, x)

    chosen = metis_compile.Policy.from_toml(
        """
        [recipe.r]
        weight = "nvfp4"
        activation = { format = "nvfp4", split = { kind = "spectral", rank = 3 } }
        gradient = "nvfp4"
        [[rule]]
        recipe = "r"
        """
    )
    model = Model()

    def whole_step(x: Tensor) -> Tensor:
        return model(x).square().mean()

    run = compiled(whole_step, chosen)
    for i in range(2):
        run(batch(i)).backward()
    kept = metis_compile.state_dict(model)
    assert list(kept) == ["weight", "core:matmul"]
    assert list(kept["core:matmul"]) == ["activation"]  # of the product; x is that of `weight`
    other = Model()
    metis_compile.load_state_dict(other, kept)
    assert same(state(other), state(model))


def test_a_backward_may_come_when_the_model_is_gone() -> None:
    model = MLP()
    y = compiled(model)(batch().requires_grad_())
    weight = model.up.weight
    del model
    torch.compiler.reset()
    gc.collect()
    y.square().sum().backward()
    assert weight.grad is not None


def test_what_is_kept_is_let_go_with_the_model() -> None:
    gc.collect()
    before = len(operators._KEEPERS)
    model = MLP()
    step(compiled(model), batch())
    assert len(operators._KEEPERS) > before
    del model
    torch.compiler.reset()
    gc.collect()
    assert len(operators._KEEPERS) == before
