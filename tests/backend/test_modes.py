"""What docs/modes.md says of each way to compile and to call: that it works, or what happens."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import capture_graphs, eager_backend, sites_of
from tiny import MLP, NEAREST_POLICY
from torch import Tensor, nn

import metis_compile
from metis_compile import Policy

X = torch.randn(32, 32, generator=torch.Generator().manual_seed(3))
EVERYTHING = Policy.from_toml('extends = "nvfp4"\n[[rule]]\nrecipe = "fp8"\n', name="everything.toml")


def make() -> MLP:
    torch.manual_seed(0)
    return MLP()


def loss_of(output: Tensor) -> Tensor:
    return output.square().mean()


def gradient_of(model: nn.Module) -> Tensor:
    return next(model.parameters()).grad.clone()  # type: ignore[union-attr]


def gradient(run: Callable[[nn.Module], Any]) -> Tensor:
    """The first parameter's, after `run(model)`."""
    model = make()
    run(model)
    return gradient_of(model)


def eagerly(policy: Policy = NEAREST_POLICY) -> Callable[..., Any]:
    return eager_backend(policy)


@pytest.fixture(scope="module")
def expected() -> Tensor:
    """The gradient of the model compiled in the ordinary way."""
    torch.compiler.reset()
    return gradient(lambda model: loss_of(torch.compile(model, backend=eagerly())(X)).backward())


@pytest.mark.parametrize("mode", ["max-autotune", "max-autotune-no-cudagraphs", "reduce-overhead"])
def test_modes_of_inductor(mode: str, expected: Tensor) -> None:
    """On a CPU these give other code for the same values."""
    options = {"policy": NEAREST_POLICY, "mode": mode}
    found = gradient(lambda model: loss_of(torch.compile(model, backend="metis", options=options)(X)).backward())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)  # a code may round to its neighbour


def test_dynamic_sizes_are_one_graph() -> None:
    with metis_compile.capture() as captured:
        compiled = torch.compile(make(), backend=eagerly(), dynamic=True)
        for tokens in (40, 17, 96):
            loss_of(compiled(torch.randn(tokens, 32))).backward()
    assert len([graph for graph in captured.graphs if graph.sites]) == 1


def compiled_autograd(model: nn.Module) -> None:
    with torch._dynamo.config.patch(compiled_autograd=True):
        loss_of(torch.compile(model, backend=eagerly())(X)).backward()


def compiled_autograd_with_the_backward_inside(model: nn.Module) -> None:
    def step(x: Tensor) -> None:
        loss_of(model(x)).backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(step, backend=eagerly(EVERYTHING))(X)


def backward_inside(model: nn.Module) -> None:
    def step(x: Tensor) -> None:
        loss_of(model(x)).backward()

    torch.compile(step, backend=eagerly(EVERYTHING))(X)


def test_compiled_autograd(expected: Tensor) -> None:
    torch.testing.assert_close(gradient(compiled_autograd), expected, rtol=0, atol=0)


def test_compiled_autograd_quantizes_nothing_twice() -> None:
    """Its graph of the backward holds that of the model as the passes left it."""
    torch.testing.assert_close(
        gradient(compiled_autograd_with_the_backward_inside), gradient(backward_inside), rtol=0, atol=0
    )


def test_a_whole_step(expected: Tensor) -> None:
    """Forward, backward and optimizer in one compiled function: its products are those of the model."""
    model = make()
    before = next(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def step(x: Tensor) -> None:
        loss_of(model(x)).backward()
        optimizer.step()

    torch.compile(step, backend=eagerly())(X)
    torch.testing.assert_close(gradient_of(model), expected, rtol=0, atol=0)
    torch.testing.assert_close(next(model.parameters()).detach(), before - 0.5 * expected, rtol=0, atol=1e-7)


def test_autograd_grad_in_the_compiled_function(expected: Tensor) -> None:
    model = make()

    def step(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss_of(model(x)), list(model.parameters()))

    found = torch.compile(step, backend=eagerly())(X)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def functional_loss(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, x: loss_of(torch.func.functional_call(model, parameters, (x,)))


def test_func_grad_around_a_compiled_model_runs_it_uncompiled() -> None:
    model = make()
    compiled = torch.compile(model, backend=eagerly())
    parameters = {f"_orig_mod.{name}": p for name, p in model.named_parameters()}
    with metis_compile.capture() as captured:
        found = torch.func.grad(functional_loss(compiled))(parameters, X)
    assert not captured.graphs
    plain = gradient(lambda model: loss_of(model(X)).backward())
    torch.testing.assert_close(found["_orig_mod.up.weight"], plain)


def test_func_grad_in_the_compiled_function() -> None:
    """Its backward is a part of the forward: dgrad reads no gradient, but an activation, and wgrad two of them."""
    model = make()
    parameters = dict(model.named_parameters())
    captured = capture_graphs(torch.func.grad(functional_loss(model)), parameters, X, policy=NEAREST_POLICY, grad=False)
    found = [(s.gemm, s.lhs.role, s.rhs.role, s.kind) for s in sites_of(captured) if s.lhs and s.rhs]
    assert found.count(("fprop", "activation", "weight", None)) == 3
    assert found.count(("fprop", "activation", "activation", "attention")) == 2
    assert len(found) == 5


def test_vmap_in_the_compiled_function() -> None:
    found = capture_graphs(torch.func.vmap(make()), torch.randn(3, 32, 32), policy=NEAREST_POLICY)
    assert [(s.module, s.gemm) for s in sites_of(found) if s.reason is None] == [
        ("up", "fprop"), ("down", "fprop"), ("down", "wgrad"), ("down", "dgrad"), ("up", "wgrad"),
    ]  # fmt: skip


def test_stances() -> None:
    model = make()
    compiled = torch.compile(model, backend=eagerly())
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(compiled(X), model(X)), "in full precision"
    quantized = compiled(X)
    assert not torch.equal(quantized, model(X))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(compiled(X), quantized)
    with torch.compiler.set_stance("eager_on_recompile"):
        assert torch.equal(compiled(X[:7]), model(X[:7])), "what needs another graph runs in full precision"
        assert torch.equal(compiled(X), quantized)


def test_stances_that_compile_later() -> None:
    """Whether the second call is quantized: where the first was compiled by another backend, that serves it too."""
    model = make()
    for stance, second, run in (
        ("eager_then_compile", True, lambda x: model(x)),
        ("aot_eager_then_compile", False, lambda x: model(x)),  # told apart by its line
    ):
        compiled = torch.compile(run, backend=eagerly())
        with torch.compiler.set_stance(stance):
            torch.testing.assert_close(compiled(X), model(X))
            assert bool((compiled(X) - model(X)).norm() > 0.01) == second, stance
    torch.compiler.reset()
    with torch.compiler.set_stance("default", force_backend=eagerly()):
        assert not torch.equal(torch.compile(model)(X), model(X))


def test_functional_call_and_inference_mode() -> None:
    model = make()
    compiled = torch.compile(model, backend=eagerly())
    quantized = compiled(X)
    given = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    found = torch.func.functional_call(compiled, {f"_orig_mod.{name}": p for name, p in given.items()}, (X,))
    assert torch.equal(found, quantized)
    loss_of(found).backward()
    loss_of(quantized).backward()
    assert torch.equal(given["up.weight"].grad, gradient_of(model))  # type: ignore[arg-type]
    with torch.inference_mode():
        assert torch.equal(compiled(X), quantized)


def test_forward_mode_and_double_backward() -> None:
    """What PyTorch does with any backend whose graphs AOTAutograd makes."""
    model = make()
    compiled = torch.compile(model, backend=eagerly())
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
        compiled(torch.autograd.forward_ad.make_dual(X, X))
    (first,) = torch.autograd.grad(loss_of(compiled(X)), model.up.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.sum().backward()


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_a_model_under_a_transform_stays_uncompiled_after_it(transform: str) -> None:
    model = make()
    compiled = torch.compile(model, backend=eagerly())
    assert not torch.equal(compiled(X), model(X))
    if transform == "grad":
        torch.func.grad(lambda x: compiled(x).sum())(X)
    elif transform == "jvp":
        torch.testing.assert_close(torch.func.jvp(compiled, (X,), (X,))[0], model(X))
    else:
        torch.func.vmap(compiled)(X[None])
    assert torch.equal(compiled(X), model(X))
    torch.compiler.reset()
    assert not torch.equal(compiled(X), model(X))


def test_a_deep_copy_of_a_compiled_model_is_compiled() -> None:
    compiled = torch.compile(make(), backend=eagerly(Policy.load("best")))
    loss_of(compiled(X)).backward()
    copied = copy.deepcopy(compiled)
    assert not metis_compile.state_dict(copied), "it keeps bases of its own, from its first step on"
    assert not torch.equal(copied(X), copied._orig_mod(X))
    assert metis_compile.state_dict(copied)


def test_a_pickled_model_is_compiled_under_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile(make(), backend="metis", options={"policy": "mxfp8"})
    text = pickle.dumps(compiled)
    monkeypatch.setenv("METIS_POLICY", "high")
    again = pickle.loads(text)
    with torch.no_grad():
        assert not torch.equal(again(X), compiled._orig_mod(X))
    assert metis_compile.summary(again).policy == "mxfp8.toml"


def test_a_copy_of_a_model_that_was_compiled_in_place_is_not_compiled() -> None:
    model = make()
    model.compile(backend=eagerly())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied._compiled_call_impl is None
        assert not torch.equal(copied(X), model(X))


def test_every_mode_has_a_row() -> None:
    text = (Path(metis_compile.__file__).parents[1] / "docs" / "modes.md").read_text()
    rows = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)[2:]
    for name in ("max-autotune", "reduce-overhead", "dynamic=True", "compiled_autograd", "torch.func.grad", "vmap",
                 "set_stance", "eager_then_compile", "force_backend", "functional_call", "jvp", "create_graph",
                 "inference_mode", "deepcopy", "pickle", "optimizer"):  # fmt: skip
        assert any(name in row for row in rows), name
