"""What compiled models keep across steps: bases that follow the tensors they split, saved and restored."""

from __future__ import annotations

import copy
import gc
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from graphs import capture_graphs, eager_backend
from tiny import MLP
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import metis_compile
from metis_compile import Policy
from metis_compile.basis_ops import FRESH_BASIS
from metis_compile.conditioning import Conditioned, Spectral, next_basis
from metis_compile.ops import LOAD, STORE
from metis_compile.state import room


def policy(activation: str = "rank = 3", gradient: str = "rank = 2", rounding: str = "nearest") -> Policy:
    return Policy.from_toml(
        f"""
        [recipe.r]
        weight = "nvfp4"
        activation = {{ format = "nvfp4", split = {{ kind = "spectral", {activation} }} }}
        gradient = {{ format = "nvfp4", rounding = "{rounding}", split = {{ kind = "spectral", {gradient} }} }}
        [[rule]]
        has_weight = true
        recipe = "r"
        """
    )


POLICY = policy()


def compiled(model: Callable[..., Any], chosen: Policy | str = POLICY, **kwargs: Any) -> Any:
    return torch.compile(model, backend=eager_backend(chosen), **kwargs)


def batch(seed: int = 0, rows: int = 40, columns: int = 32) -> Tensor:
    """Three dominant directions, always the same, and noise."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
    return torch.randn(rows, 3, generator=g) @ directions + 0.3 * torch.randn(rows, columns, generator=g)


def state(model: Any) -> dict[str, Tensor]:
    return {f"{key}.{part}": t for key, parts in metis_compile.state_dict(model).items() for part, t in parts.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def cosine(basis: Tensor, x: Tensor) -> float:
    """Of the largest principal angle between the rows of a basis and the dominant right singular directions of x."""
    dominant = torch.linalg.svd(x)[2][: len(basis)]
    return float(torch.linalg.svdvals(basis @ dominant.T).min())


def step(run: Callable[..., Tensor], x: Tensor, scale: Tensor | None = None) -> Tensor:
    y = run(x)
    y.backward(torch.ones_like(y) / len(x) if scale is None else scale)
    return y.detach()


def test_bases_converge_to_the_dominant_directions() -> None:
    model = nn.Linear(32, 16)
    run = compiled(model)
    x, g = batch(), batch(5, 40, 16)
    angles = []
    for _ in range(12):
        step(run, x, g)
        kept = metis_compile.state_dict(run)["weight#0"]
        angles.append((cosine(kept["forward"][:96].view(3, 32), x), cosine(kept["backward"][:32].view(2, 16), g)))
    assert angles[0][0] < angles[2][0] <= 1.0001
    assert min(angles[-1]) > 0.999


def test_there_is_room_for_as_many_directions_as_are_asked_for() -> None:
    run = compiled(nn.Linear(64, 48), policy("rank_least = 40", "rank_least = 40"))
    step(run, batch(columns=64))
    assert state(run)["weight#0.backward"].numel() >= 40 * 48


def test_no_recompile_and_dynamic_tokens() -> None:
    run = compiled(nn.Linear(32, 16), dynamic=True, fullgraph=True)
    counters.clear()
    for i in range(6):
        step(run, batch(i, rows=30 + i))
    assert counters["stats"]["unique_graphs"] == 1
    assert list(metis_compile.state_dict(run)) == ["weight#0"]
    assert cosine(state(run)["weight#0.forward"][:96].view(3, 32), batch()) > 0.97


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


class Blocks(nn.Module):
    """The same MLP twice, its second call perhaps checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.mlp, self.reentrant = MLP(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        return self.mlp(x) if self.reentrant is None else checkpoint(self.mlp, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True], ids=["nonreentrant", "reentrant"])
def test_checkpointing_inside_the_model_changes_nothing(reentrant: bool) -> None:
    results = []
    start = Blocks()
    for chosen in (None, reentrant):
        torch.compiler.reset()
        model = Blocks(chosen)
        model.load_state_dict(start.state_dict())
        run = compiled(model, fullgraph=True)
        for i in range(3):
            step(run, batch(i))
        results.append({**state(run), **{n: p.grad for n, p in model.named_parameters()}})
    assert same(*results)


def test_reads_and_writes_stand_once_in_their_half() -> None:
    captured = capture_graphs(Blocks(False), batch(), policy=POLICY)
    (graph,) = captured.graphs
    for gm, slots in ((graph.forward, 4), (graph.backward, 4)):
        assert gm is not None
        for target in (LOAD, STORE):
            nodes = gm.graph.find_nodes(op="call_function", target=target)
            assert len({(n.args[0], n.args[-1 if target is STORE else 1]) for n in nodes}) == len(nodes) == slots


KEPT = {
    "tracked": ("rank = 3", "rank = 2"),
    "refreshed": ("rank = 3, refresh = 3, track = false", "rank = 2, refresh = 2, track = false"),
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("anew", [False, True], ids=["inputs kept", "inputs computed anew"])
@pytest.mark.parametrize("forwards", [1, 2])
def test_a_compiled_block_that_is_checkpointed_takes_the_same_steps(kept: str, anew: bool, forwards: int) -> None:
    """It runs again from the bases that it had, so that gradients are those of the forward that made the loss.

    Of two forwards in one step, the last runs again first where inputs are computed anew, or else the first.
    """
    results = []
    start = MLP()
    for checkpointed in (False, True):
        torch.compiler.reset()
        model = copy.deepcopy(start)
        run = compiled(model, policy(*KEPT[kept], "stochastic"))
        called = (lambda x, run=run: run(2 * x)) if anew else run
        taken = []
        for i in range(4):
            torch.manual_seed(i)
            losses = []
            for seed in range(i, i + 10 * forwards, 10):
                x = batch(seed).requires_grad_()
                y = checkpoint(called, x, use_reentrant=False) if checkpointed else called(x)
                losses.append(y.square().sum())
            for loss in [sum(losses)] if anew else losses:
                loss.backward()
            taken.append({**state(run), **{n: p.grad.clone() for n, p in model.named_parameters()}})
        results.append(taken)
    assert all(same(a, b) for a, b in zip(*results, strict=True))
    first, second = ([v for key, v in results[1][i].items() if "forward" in key] for i in (0, 1))
    assert len(first) == 1
    assert not torch.equal(first[0], second[0])


def test_what_a_checkpoint_may_need_is_let_go() -> None:
    from metis_compile.state import _Call

    def held() -> int:
        return sum(type(o) is _Call for o in gc.get_objects())

    gc.collect()  # graphs of other tests
    assert held() == 0
    run = compiled(MLP())
    for i in range(3):
        y = checkpoint(run, batch(i).requires_grad_(), use_reentrant=False)
        assert held() == 1
        if i:
            y.square().sum().backward()
        del y
        assert held() == 0
    step(run, batch())
    assert held() == 0


@pytest.mark.parametrize("which", [{0, 1, 2}, {1}], ids=str)
def test_blocks_with_reentrant_checkpoints_move_on(which: set[int]) -> None:
    """One compiled graph serves all: some first run with gradients outside of a backward, some inside."""
    blocks = nn.ModuleList(MLP() for _ in range(3))
    for block in blocks:
        block.compile(backend=eager_backend(POLICY))
    seen = []
    for i in range(4):
        x = batch(i).requires_grad_()
        for k, block in enumerate(blocks):
            x = x + (checkpoint(block, x, use_reentrant=True) if k in which else block(x))
        x.square().sum().backward()
        seen.append(state(blocks))
    for before, after in pairwise(seen):
        assert len(before) == 6
        assert not any(torch.equal(before[key], after[key]) for key in before)


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
    run = compiled(Blocks())
    step(run, batch())
    captured = capture_graphs(Blocks(), batch(), policy=POLICY)
    nodes = captured.graphs[0].joint_after.graph.find_nodes(op="call_function", target=LOAD)  # type: ignore[union-attr]
    assert len({(n.args[0], n.args[1]) for n in nodes}) == len(nodes) == 8


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
    assert sorted(metis_compile.state_dict(model)) == ["0.up.weight#0", "1.up.weight#0"]
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
    with pytest.raises(ValueError, match="of another model: there is no parameter 'weight'"):
        metis_compile.load_state_dict(MLP(), kept)
    with pytest.raises(ValueError, match="'weight#0' must hold forward and backward, got \\['forward'\\]"):
        metis_compile.load_state_dict(run, {"weight#0": {"forward": kept["weight#0"]["forward"]}})
    with pytest.raises(TypeError, match="gives, got list"):
        metis_compile.load_state_dict(run, [])  # type: ignore[arg-type]
    other = compiled(nn.Linear(32, 16), policy("rank = 5"))
    metis_compile.load_state_dict(other, kept)
    with pytest.raises(ValueError, match="this model and policy need"):
        step(other, batch())


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
        kept.append(state(run)["weight#0.forward"][:96].view(3, 32))
    changed = [not torch.equal(a, b) for a, b in pairwise(kept)]
    assert changed == [False, False, True, False, False, True]
    assert cosine(kept[0], batch()) > 0.9


def test_looking_keeps_nothing() -> None:
    model = nn.Linear(32, 16)
    metis_compile.explain(model, batch(), policy=POLICY)
    assert metis_compile.state_dict(model) == {}
    step(compiled(model), batch())
    assert list(metis_compile.state_dict(model)) == ["weight#0"]


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
    kept = metis_compile.state_dict(run)["0.weight#0"]["forward"]
    assert abs(float(kept[:64].norm()) - 1) < 1e-5
    assert kept[64] == 1


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
        kept = state(run)["weight#0.forward"]
        torch.testing.assert_close(kept[:32].view(1, 32), basis)
        assert kept[32] == count


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
