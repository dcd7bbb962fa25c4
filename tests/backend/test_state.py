"""What compiled models keep across steps: bases that follow the tensors they split, saved and restored."""

from __future__ import annotations

import copy
import sys
import types
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from graphs import capture_graphs, eager_backend
from kept_bases import POLICY, batch, compiled, policy, same, state, step
from tiny import MLP, Twice
from torch import Tensor, nn
from torch._dynamo.utils import counters

import metis_compile
from metis_compile import Policy
from metis_compile.conditioning import Conditioned, Spectral, next_basis
from metis_compile.ops.basis import FRESH_BASIS
from metis_compile.ops.state import LOAD, STORE


def cosine(basis: Tensor, x: Tensor) -> float:
    """Of the largest principal angle between the rows of a basis and the dominant right singular directions of x."""
    dominant = torch.linalg.svd(x)[2][: len(basis)]
    return float(torch.linalg.svdvals(basis @ dominant.T).min())


def test_bases_converge_to_the_dominant_directions() -> None:
    model = nn.Linear(32, 16)
    run = compiled(model)
    x, g = batch(), batch(5, 40, 16)
    angles = []
    for _ in range(12):
        step(run, x, g)
        kept = metis_compile.state_dict(run)["weight"]
        angles.append((cosine(kept["activation"], x), cosine(kept["gradient"], g)))
    assert angles[0][0] < angles[2][0] <= 1.0001
    assert min(angles[-1]) > 0.999


def test_no_recompile_and_dynamic_tokens() -> None:
    run = compiled(nn.Linear(32, 16), dynamic=True, fullgraph=True)
    counters.clear()
    for i in range(6):
        step(run, batch(i, rows=30 + i))
    assert counters["stats"]["unique_graphs"] == 1
    assert list(metis_compile.state_dict(run)) == ["weight"]
    assert cosine(state(run)["weight.activation"], batch()) > 0.97


def test_several_forwards_before_their_backwards() -> None:
    """Forward bases move with each forward, backward bases with each backward, whichever comes first."""
    results = []
    for interleaved in (False, True):
        torch.compiler.reset()
        torch.manual_seed(0)
        model = nn.Linear(32, 16)
        run = compiled(model)
        outputs = []
        for i in range(3):
            outputs.append(run(batch(i)))
            if not interleaved:
                outputs.pop().square().sum().backward()
        for y in outputs:
            y.square().sum().backward()
        results.append({**state(run), "grad": model.weight.grad})
    assert same(*results)


def test_reads_and_writes_stand_once_in_their_half() -> None:
    captured = capture_graphs(Twice(False), batch(), policy=POLICY)
    (graph,) = captured.graphs
    for gm, slots in ((graph.forward, 4), (graph.backward, 4)):
        assert gm is not None
        for target in (LOAD, STORE):
            nodes = gm.graph.find_nodes(op="call_function", target=target)
            assert len({n.args[2:4] if target is STORE else n.args[1:3] for n in nodes}) == len(nodes) == slots


def test_evaluation_leaves_the_state_alone() -> None:
    model = MLP()
    run = compiled(model)
    step(run, batch())
    before = state(run)
    torch.manual_seed(5)
    with torch.no_grad():
        first, second = run(batch(3)), run(batch(3))
    drawn = torch.randn(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.randn(1)), "evaluation drew random numbers"
    assert torch.equal(first, second)
    model.eval()
    with torch.inference_mode():
        run(batch(4))
    with torch.no_grad():
        run(batch(4))
    assert same(before, state(run))
    model.train()
    step(run, batch(1))
    assert not same(before, state(run))


def test_calls_of_one_module_in_a_step_have_their_own() -> None:
    run = compiled(Twice())
    step(run, batch())
    captured = capture_graphs(Twice(), batch(), policy=POLICY)
    nodes = captured.graphs[0].joint_after.graph.find_nodes(op="call_function", target=LOAD)  # type: ignore[union-attr]
    assert len({n.args[:3] for n in nodes}) == len(nodes) == 8


def test_instances_have_their_own() -> None:
    """Dynamo runs one compiled graph for all instances of a class."""
    backend = eager_backend(POLICY)
    models = [MLP(), MLP()]
    runs = [torch.compile(m, backend=backend) for m in models]
    counters.clear()
    for i in range(2):
        step(runs[0], batch(i))
    first = state(runs[0])
    step(runs[1], batch(7))
    assert counters["stats"]["unique_graphs"] == 1, "or this test says nothing"
    assert same(first, state(runs[0]))
    assert not same(first, state(runs[1]))


def test_blocks_compiled_one_by_one_have_their_own() -> None:
    model = nn.Sequential(MLP(), MLP())
    for block in model:
        block.compile(backend=eager_backend(POLICY))
    step(model, batch())
    sites = ["0.up.weight", "0.down.weight", "1.up.weight", "1.down.weight"]
    assert list(metis_compile.state_dict(model)) == sites
    with pytest.raises(TypeError, match="give the compiled module"):
        metis_compile.state_dict(model.forward)  # type: ignore[arg-type]


@pytest.mark.parametrize("before_the_first_step", [True, False])
def test_a_resumed_run_goes_on_bit_for_bit(before_the_first_step: bool) -> None:
    chosen = policy("rank = 3, refresh = 3", "rank = 2, refresh = 2, track = false", "stochastic")

    def train(model: nn.Module, run: Any, steps: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for i in steps:
            torch.manual_seed(i)
            step(run, batch(i))
            optimizer.step()
            optimizer.zero_grad()

    model = MLP()
    run = compiled(model, chosen)
    train(model, run, range(4))
    weights, kept = copy.deepcopy(model.state_dict()), metis_compile.state_dict(run)
    train(model, run, range(4, 8))
    straight = {**model.state_dict(), **state(run)}

    torch.compiler.reset()
    model = MLP()
    run = compiled(model, chosen)
    if not before_the_first_step:
        train(model, run, range(1))
    model.load_state_dict(weights)
    metis_compile.load_state_dict(run, kept)
    train(model, run, range(4, 8))
    assert same(straight, {**model.state_dict(), **state(run)})


def test_a_state_that_waits_is_given_back_and_replaced() -> None:
    """Between loading and the first step."""
    run = compiled(nn.Linear(32, 16))
    step(run, batch())
    kept = metis_compile.state_dict(run)
    step(run, batch(1))
    later = metis_compile.state_dict(run)
    waiting = nn.Linear(32, 16)
    for given in (later, kept):
        metis_compile.load_state_dict(waiting, given)
        found = metis_compile.state_dict(waiting)
        assert found.keys() == given.keys()
        assert all(same(found[key], given[key]) for key in given)
    metis_compile.load_state_dict(waiting, {})
    assert metis_compile.state_dict(waiting) == {}


def test_the_state_of_something_else_is_refused() -> None:
    run = compiled(nn.Linear(32, 16))
    step(run, batch())
    kept = metis_compile.state_dict(run)
    before, rows = state(run), kept["weight"]["activation"]
    refusals: list[tuple[nn.Module, Any, str]] = [
        (MLP(), kept, "weight: it is of another model: there is no parameter of this name"),
        (run, {"up:matmul": kept["weight"]}, "up:matmul: it is of another model: there is no module of this name"),
        (
            nn.Linear(32, 48),
            kept,
            r"weight: it is of another model: the parameter has the shape \[48, 32\], and had \[",
        ),
        (
            run,
            {"weight": {"activation": rows[:2]}},
            r"weight: activation: .* \[2, 32\], .* need \[3, 32\]; strict=False",
        ),
        (
            run,
            {"weight": {"activation": rows.double()}},
            "weight: activation: it must be a float32 matrix, got torch.flo",
        ),
        (run, {"weight": rows}, "weight: it must hold tensors by the names of their parts"),
        (run, {"weight#0": {"forward": rows, "backward": rows}}, "weight#0: this is a state of an earlier version"),
    ]
    for model, given, message in refusals:
        with pytest.raises(ValueError, match=f"metis: the state does not fit: {message}"):
            metis_compile.load_state_dict(model, given)
        assert same(state(run), before)
        found = metis_compile.load_state_dict(copy.deepcopy(model), given, strict=False)
        assert len(found) == 1 or model is run
    with pytest.raises(TypeError, match="gives, got list"):
        metis_compile.load_state_dict(run, [])  # type: ignore[arg-type]


def test_a_basis_that_the_policy_does_not_fit_is_left_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A policy is known when it is compiled, and no step is given up for it."""
    run = compiled(nn.Linear(32, 16))
    step(run, batch())
    kept = metis_compile.state_dict(run)
    other = compiled(nn.Linear(32, 16), policy("rank = 5"))
    metis_compile.load_state_dict(other, kept)
    step(other, batch(), batch(5, 40, 16))
    (record,) = caplog.records
    assert "they differ in shape: activation of weight is [5, 32], and there is [3, 32]" in record.getMessage()
    found = state(other)
    assert torch.equal(found["weight.activation"], kept["weight"]["activation"])
    assert found["weight.activation [5, 32]"].shape == (5, 32)
    assert not torch.equal(found["weight.gradient"], kept["weight"]["gradient"]), "this one fits, and moves on"
    again = nn.Linear(32, 16)
    metis_compile.load_state_dict(again, metis_compile.state_dict(other))
    assert same(state(again), found)


def test_cleared_with_the_compiled_graphs() -> None:
    model = nn.Linear(32, 16)
    step(compiled(model), batch())
    first = state(model)
    step(compiled(model), batch(1))
    torch.compiler.reset()
    assert state(model) == {}
    step(compiled(model), batch())
    assert same(first, state(model))


def test_refreshed_from_a_sketch() -> None:
    """A basis that is not tracked stays as it was made, until it is made again."""
    run = compiled(nn.Linear(32, 16), policy("rank = 3, refresh = 3, track = false"))
    kept = []
    for i in range(7):
        step(run, batch(i))
        kept.append(state(run)["weight.activation"])
    changed = [not torch.equal(a, b) for a, b in pairwise(kept)]
    assert changed == [False, False, True, False, False, True]
    assert cosine(kept[0], batch()) > 0.9


def test_looking_keeps_nothing() -> None:
    model = nn.Linear(32, 16)
    metis_compile.explain(model, batch(), policy=POLICY)
    assert metis_compile.state_dict(model) == {}
    step(compiled(model), batch())
    assert list(metis_compile.state_dict(model)) == ["weight"]


def test_one_basis_for_both_axes() -> None:
    """Factors with blocks are rounded along the axis, so that a tensor is split for each; its basis moves on once."""
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    x = batch(rows=256, columns=64).requires_grad_()
    graph = capture_graphs(model, x, policy="metis-paper").graphs[0].joint_after
    assert graph is not None
    split = 6  # activation, weight and gradient of two linears, each with its basis and how many steps it is old
    for target, count in ((FRESH_BASIS, split), (LOAD, 2 * split), (STORE, 2 * split)):
        assert len(graph.graph.find_nodes(op="call_function", target=target)) == count

    run = compiled(model, "metis-paper")
    step(run, x)
    kept = metis_compile.state_dict(run)["0.weight"]
    torch.testing.assert_close(kept["activation"].norm(dim=1), torch.ones(len(kept["activation"])))
    assert kept["activation.steps"] == 2  # it was captured before: what a module keeps outlasts a graph


def test_no_sketch_between_refreshes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    fresh_basis = Spectral.fresh_basis

    def counted(self: Spectral, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if type(x) is Tensor:
            made.append(i)
        return fresh_basis(self, x, *args, **kwargs)

    monkeypatch.setattr(Spectral, "fresh_basis", counted)
    run = compiled(nn.Linear(32, 16), policy("rank = 3, refresh = 3"))
    for i in range(7):
        step(run, batch(i))
    assert made == [0, 3, 6]


@dataclass(frozen=True, kw_only=True)
class Somebodys:
    """A conditioning of the user's own that keeps a basis."""

    refresh: int = 3
    keeps_basis: ClassVar[bool] = True
    needs_seed: ClassVar[bool] = False

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        right = self.fresh_basis(x, seed) if basis is None else basis
        left = x @ right.mT
        return Conditioned(x - left @ right, left, right)

    def fresh_basis(self, x: Tensor, seed: Tensor | None, *, stream: int = 0, rank: int | None = None) -> Tensor:
        return torch.nn.functional.normalize(x.abs().mean(0, keepdim=True), dim=1)

    def update_basis(self, x: Tensor, basis: Tensor) -> Tensor:
        return torch.nn.functional.normalize(basis + 1, dim=1)


def test_a_class_of_the_users_own_keeps_a_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys")
    module.Somebodys = Somebodys  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys", module)
    chosen = Policy.from_toml(
        """
        [recipe.r]
        weight = "nvfp4"
        activation = { format = "nvfp4", split = { kind = "somebodys:Somebodys" } }
        gradient = "nvfp4"
        [[rule]]
        recipe = "r"
        """
    )
    run = compiled(nn.Linear(32, 16), chosen)
    how, basis, count = Somebodys(), torch.zeros(1, 32), torch.zeros(1)
    for i in range(5):
        step(run, batch(i))
        basis, count = next_basis(how, batch(i), basis, count, axis=1, seed=None)
        kept = state(run)
        torch.testing.assert_close(kept["weight.activation"], basis)
        assert kept["weight.activation.steps"] == count


def test_the_dynamo_graph_stays_as_it_was() -> None:
    seen = []

    def backend(gm: torch.fx.GraphModule, example_inputs: Any, **kwargs: Any) -> Any:
        before = str(gm.graph)
        result = eager_backend(POLICY)(gm, example_inputs, **kwargs)
        seen.append((before, str(gm.graph)))
        return result

    step(torch.compile(MLP(), backend=backend), batch())
    assert seen[0][0] == seen[0][1]


def test_compiled_by_inductor() -> None:
    """The same bases as the graph that runs eagerly, in forward and backward; a second instance has its own."""
    start, results = MLP(), []
    for options in ({"backend": eager_backend(POLICY)}, {"backend": "metis", "options": {"policy": POLICY}}):
        torch.compiler.reset()
        model = copy.deepcopy(start)
        run = torch.compile(model, **options)  # type: ignore[call-overload]
        for i in range(3):
            step(run, batch(i), batch(i + 10))
        kept = state(run)
        other = copy.deepcopy(start)
        step(torch.compile(other, **options), batch(9))  # type: ignore[call-overload]
        assert same(kept, state(run))
        results.append(kept)
    for key in results[0]:
        torch.testing.assert_close(results[1][key], results[0][key], rtol=0, atol=2e-2, msg=key)
