"""Amaxes that a policy holds for some steps: which one a product is quantized by, and how it is kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from by_hand import SUMMATION_ORDER, assert_same
from graphs import capture_graphs, count, eager_backend
from kept_bases import batch, compiled, same, state, step
from read_in_wgrad import RULES, Two
from tiny import MLP, Twice
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import metis_compile
from metis_compile import Policy
from metis_compile.kernels.cpu import launch
from metis_compile.numerics import QuantSpec, fake_quantize, held_amax
from metis_compile.ops.held_amax import HELD_AMAX
from metis_compile.ops.state import LOAD, STORE

ROLES = ("weight", "activation", "gradient")
STEPS = {"weight": 4, "activation": 3, "gradient": 2}


def policy(rounding: str = "nearest", split: str = "", *, format: str = "nvfp4") -> Policy:
    """Each operand's amax held for STEPS. rounding: of gradients; split: of activations."""
    more = {"weight": "", "activation": split, "gradient": f', rounding = "{rounding}"'}
    treatments = [f'{role} = {{ format = "{format}", hold_amax = {STEPS[role]}{more[role]} }}' for role in ROLES]
    return Policy.from_toml("\n".join(["[recipe.r]", *treatments, "[[rule]]", "has_weight = true", "recipe = 'r'"]))


NEAREST = policy()


class ByHand:
    """A linear's products of operands that are quantized by amaxes that are held, in plain torch."""

    def __init__(self, spec: str) -> None:
        self.spec = QuantSpec.parse(spec)
        self.kept = {role: torch.zeros(2) for role in ROLES}

    def step(self, weight: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output and the gradients of x and of the weight."""
        amaxes = {}
        for role, tensor in zip(ROLES, (weight, x, g), strict=True):
            amaxes[role], self.kept[role] = held_amax(tensor, self.kept[role], STEPS[role])

        def q(role: str, tensor: Tensor, axis: int) -> Tensor:
            return fake_quantize(tensor, self.spec, axis, amax=amaxes[role])

        w, gradient = weight.detach(), "gradient"
        return (
            q("activation", x, 1) @ q("weight", w, 1).T,
            q(gradient, g, 1) @ q("weight", w, 0),
            q(gradient, g, 0).T @ q("activation", x, 0),
        )


@pytest.mark.parametrize(("format", "spec"), [("nvfp4", "nvfp4 1x16 nearest"), ("fp8", "fp8 tensor nearest")])
def test_every_product_of_a_linear_is_that_of_the_numerics(format: str, spec: str) -> None:
    """Over nine steps of tensors that grow and shrink, under weights that move."""
    model = nn.Linear(32, 48, bias=False)
    run, hand = compiled(model, policy(format=format)), ByHand(spec)
    for i, factor in enumerate((1.0, 4.0, 0.1, 2.0, 30.0, 1.0, 0.01, 1.0, 8.0)):
        x, g = (batch(i) * factor).requires_grad_(), batch(i + 20, columns=48) * (1.5 - factor / 30)
        model.weight.grad = None
        y = run(x)
        y.backward(g)
        assert x.grad is not None
        expected = hand.step(model.weight, x.detach(), g)
        for got, want in zip((y, x.grad, model.weight.grad), expected, strict=True):
            assert_same(got, want, SUMMATION_ORDER, f"step {i}")
        kept = metis_compile.state_dict(run)["weight"]
        for role in ROLES:
            assert torch.equal(kept[f"{role}.amax"], hand.kept[role]), f"step {i}: {role}"
        with torch.no_grad():
            model.weight.mul_(1.2)


def test_one_amax_for_a_tensor_and_all_that_read_it() -> None:
    """Both axes, and q, k and v of one input; it is read and written once in its half of the graph."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(32, 16), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) * self.k(x)

    (graph,) = capture_graphs(Both(), batch().requires_grad_(), policy=NEAREST).graphs
    assert graph.forward is not None
    assert graph.backward is not None
    for gm, tensors in ((graph.forward, 3), (graph.backward, 2)):
        for target in (HELD_AMAX, LOAD, STORE):
            assert count(gm, target) == tensors
    names = [str(n.args[1:3]) for n in graph.forward.graph.find_nodes(op="call_function", target=LOAD)]
    assert names == ["('q.weight', 'activation.amax')", "('q.weight', 'weight.amax')", "('k.weight', 'weight.amax')"]


@pytest.mark.parametrize("more", ["", ", split = 'mean'", ", hadamard = 'fixed'"], ids=["plain", "split", "hadamard"])
def test_it_is_measured_before_the_first_that_reads_it(more: str) -> None:
    """Of two linears that read one tensor, the first reads it quantized in wgrad alone, in a format of its own."""

    def recipe(name: str, format: str) -> str:
        treatment = f'{{ format = "{format}", hold_amax = 3{more} }}'
        return f"[recipe.{name}]\n" + "".join(f"{role} = {treatment}\n" for role in ROLES)

    chosen = Policy.from_toml(recipe("first", "fp8") + recipe("second", "nvfp4") + RULES)
    run = compiled(Two(), chosen)
    for i in range(2):
        step(run, batch(i).requires_grad_())
    kept = {name: t for name, t in state(run).items() if "activation.amax" in name}
    assert [float(t[1]) for t in kept.values()] == [2.0] * (2 if "hadamard" in more else 1)  # one for each axis


def test_calls_of_one_module_in_a_graph_hold_their_own() -> None:
    run = compiled(Twice(), NEAREST)
    step(run, batch())
    kept = metis_compile.state_dict(run)["mlp.up.weight"]
    assert kept["activation.amax"][0] == batch().abs().amax()
    assert kept["activation.amax#1"][0] != kept["activation.amax"][0]
    assert "weight.amax#1" not in kept  # one tensor


def test_of_what_is_quantized() -> None:
    """Of the residual of a split."""
    run = compiled(nn.Linear(32, 16), policy(split=', split = "mean"'))
    x = batch() + 5
    step(run, x)
    held = metis_compile.state_dict(run)["weight"]["activation.amax"][0]
    torch.testing.assert_close(held, (x - x.mean(0)).abs().amax(), rtol=1e-2, atol=0)  # the mean is in bfloat16


def test_evaluation_reads_it_and_moves_nothing_on() -> None:
    model = nn.Linear(32, 48, bias=False)
    run, spec = compiled(model, NEAREST), QuantSpec.parse("nvfp4 1x16 nearest")
    loud = batch(3) * 20

    def product(activation: Tensor, weight: Tensor) -> Tensor:
        w = model.weight.detach()
        return fake_quantize(loud, spec, 1, amax=activation) @ fake_quantize(w, spec, 1, amax=weight).T

    own = loud.abs().amax(), model.weight.detach().abs().amax()
    with torch.no_grad():
        assert_same(run(loud), product(*own), SUMMATION_ORDER, "nothing is held yet")
    step(run, batch())
    before = state(run)
    held = before["weight.activation.amax"][0], before["weight.weight.amax"][0]
    for where in (torch.no_grad(), torch.inference_mode()):
        with where:
            assert_same(run(loud), product(*held), SUMMATION_ORDER, "held")
            assert torch.equal(run(loud), run(loud))
    assert same(before, state(run))
    step(run, batch(1))
    assert state(run)["weight.activation.amax"].tolist() == [float(held[0]), 2]


def test_a_weight_of_zeros_is_measured_until_it_is_none() -> None:
    """As LoRA's second factor and zero-initialized projections are; nothing else of the step is lost."""
    model = nn.Linear(32, 16, bias=False)
    nn.init.zeros_(model.weight)
    run = compiled(model, NEAREST)
    step(run, batch())
    kept = state(run)
    assert kept["weight.weight.amax"].tolist() == [0, 0]
    assert kept["weight.activation.amax"][1] == 1
    with torch.no_grad():
        model.weight.copy_(torch.randn(16, 32))
    step(run, batch())
    assert state(run)["weight.weight.amax"].tolist() == [float(model.weight.detach().abs().amax()), 1]


@pytest.mark.parametrize("before_the_first_step", [True, False])
def test_a_resumed_run_goes_on_bit_for_bit(before_the_first_step: bool) -> None:
    chosen = policy("stochastic", ", split = { kind = 'spectral', rank = 2 }")

    def train(model: nn.Module, run: Any, steps: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for i in steps:
            torch.manual_seed(i)
            step(run, batch(i) * (i + 1))
            optimizer.step()
            optimizer.zero_grad()

    model = MLP()
    run = compiled(model, chosen)
    train(model, run, range(5))
    weights, kept = copy.deepcopy(model.state_dict()), metis_compile.state_dict(run)
    assert kept["up.weight"]["activation.amax"][1] == 2
    train(model, run, range(5, 9))
    straight = {**model.state_dict(), **state(run)}

    results = []
    for loaded in (True, False):
        torch.compiler.reset()
        model = MLP()
        run = compiled(model, chosen)
        if not before_the_first_step:
            train(model, run, range(1))
        model.load_state_dict(weights)
        if loaded:
            assert metis_compile.load_state_dict(run, kept) == []
        else:
            metis_compile.load_state_dict(run, {})
        train(model, run, range(5, 9))
        results.append(same(straight, {**model.state_dict(), **state(run)}))
    assert results == [True, False], "or what is kept makes no difference"


@pytest.mark.parametrize("reentrant", [False, True], ids=["nonreentrant", "reentrant"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "around"])
def test_checkpointing_changes_nothing(inside: bool, reentrant: bool) -> None:
    results = []
    start = Twice()
    for checkpointed in (False, True):
        torch.compiler.reset()
        model = Twice(reentrant if checkpointed and inside else None)
        model.load_state_dict(start.state_dict())
        run = compiled(model, policy("stochastic"), fullgraph=True)
        taken = []
        for i in range(5):
            torch.manual_seed(i)
            x = (batch(i) * (i + 1)).requires_grad_()
            y = checkpoint(run, x, use_reentrant=reentrant) if checkpointed and not inside else run(x)
            y.square().mean().backward()
            taken.append({**state(run), "y": y.detach(), "x": x.grad})
            taken[-1] |= {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append(taken)
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        assert same(a, b), f"step {i}"
    served = [taken["mlp.up.weight.activation.amax"][1] for taken in results[1]]
    assert served == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("dynamic", [True, None])
def test_every_graph_of_a_module_holds_the_same(dynamic: bool | None) -> None:
    model = nn.Linear(32, 16)
    run = compiled(model, NEAREST, dynamic=dynamic)
    served = []
    for rows in (40, 24, 40, 56):
        step(run, batch(rows=rows))
        served.append(state(run)["weight.activation.amax"].tolist())
    first = float(batch(rows=40).abs().amax())
    assert served == [[first, 1], [first, 2], [first, 3], [float(batch(rows=56).abs().amax()), 1]]


def test_compiled_by_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same amaxes and, to summation order, results as the graph that runs eagerly; and no pass for what is held."""
    passes: list[int] = []
    measured: list[int] = []
    aminmax, tensor_scale = torch.aminmax, launch.tensor_scale

    def counted(x: Tensor) -> Any:
        measured.append(i)
        return aminmax(x)

    def noted(x: Tensor, *given: Any) -> None:
        passes.append(x.numel())
        tensor_scale(x, *given)

    monkeypatch.setattr(torch, "aminmax", counted)
    monkeypatch.setattr(launch, "tensor_scale", noted)
    start, results = MLP(), []
    for options in ({"backend": eager_backend(NEAREST)}, {"backend": "metis", "options": {"policy": NEAREST}}):
        torch.compiler.reset()
        measured.clear()
        model = copy.deepcopy(start)
        run = torch.compile(model, **options)  # type: ignore[call-overload]
        taken = []
        for i in range(4):
            x = (batch(i) * (i + 1)).requires_grad_()
            step(run, x, batch(i + 10) / (i + 1))
            taken.append({**state(run), "x": x.grad})
        assert [measured.count(step) for step in range(4)] == [6, 0, 2, 2]  # weights, activations, gradients of two
        results.append(taken)
    assert passes, "or the kernels were not met"
    assert set(passes) == {1}
    for i, (eager, made) in enumerate(zip(*results, strict=True)):
        for key in eager:
            assert_same(made[key], eager[key], 2e-2, f"step {i}: {key}")  # a last bit may move a code
