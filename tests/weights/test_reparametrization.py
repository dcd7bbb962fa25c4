"""Weights in four parts: the same function before and after, all parts trained, and back to the plain model."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from anisotropic import anisotropic
from torch import nn

from metis_compile import plain_state_dict, reparametrize, unreparametrize
from metis_compile.weights.reparametrization import SplitLinear


def plain_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(11, 24), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24, bias=False), nn.Linear(24, 11)
    )
    with torch.no_grad():
        model[1].weight.copy_(anisotropic(40, 24) / 10)
    return model


TOKENS = torch.arange(11)


def test_the_model_computes_what_it_did_and_keeps_its_biases() -> None:
    plain = plain_model()
    want, biases = plain(TOKENS), [plain[1].bias, plain[4].bias]
    model = reparametrize(plain, 0.1)
    assert model is plain
    assert [type(module) for module in model].count(SplitLinear) == 3
    assert [len(model[i].scale) for i in (1, 3, 4)] == [2, 2, 1]
    assert torch.allclose(model(TOKENS), want, atol=1e-5)
    assert model[1].bias is biases[0]
    assert model[3].bias is None
    assert "rank=2" in repr(model)


def test_the_parts_are_the_dominant_directions_and_the_rest() -> None:
    plain = plain_model()
    weight = plain[1].weight.detach().clone()
    layer = reparametrize(plain, 3)[1]
    s = torch.linalg.svdvals(weight)
    assert torch.allclose(layer.scale, s[:3], rtol=1e-3)
    assert torch.allclose(layer.residual.norm(), s[3:].norm(), rtol=1e-3)
    for factor in (layer.left.T, layer.right):
        assert torch.allclose(factor @ factor.T, torch.eye(3), atol=1e-3)
    assert torch.allclose(layer.weight, weight, atol=1e-6)


def test_training_moves_all_four_parts_and_it_goes_back() -> None:
    model = reparametrize(plain_model(), 2)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(TOKENS).square().mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert not torch.equal(value, before[name]), name
    want = model(TOKENS)
    state = plain_state_dict(model)
    fresh = plain_model()
    assert list(state) == list(fresh.state_dict())
    fresh.load_state_dict(state)
    assert torch.allclose(fresh(TOKENS), want, atol=1e-5)
    assert any(isinstance(module, SplitLinear) for module in model)
    back = unreparametrize(model)
    assert back is model
    assert [type(module) for module in back] == [type(module) for module in fresh]
    assert back.state_dict().keys() == fresh.state_dict().keys()
    assert torch.allclose(back(TOKENS), want, atol=1e-5)
    assert all(parameter.requires_grad for parameter in back.parameters())


def test_both_kinds_of_state_load() -> None:
    plain = plain_model()
    state = copy.deepcopy(plain.state_dict())
    first, second = reparametrize(plain_model(), 2), reparametrize(plain_model(), 2)
    with torch.no_grad():
        first[1].scale.mul_(2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(TOKENS), first(TOKENS))
    second.load_state_dict(state)
    assert torch.allclose(second(TOKENS), plain(TOKENS), atol=1e-5)
    assert list(state) == list(plain.state_dict())  # what was given is not changed
    del state["3.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict(state)


def test_which_layers_are_replaced() -> None:
    class Own(nn.Linear): ...

    model = plain_model()
    model[0].weight = model[4].weight = nn.Parameter(torch.randn(11, 24))
    model[3] = Own(40, 24)
    assert [i for i, m in enumerate(reparametrize(model, 2)) if isinstance(m, SplitLinear)] == [1]
    model = reparametrize(plain_model(), 2, modules=["1", "{3..4}"])
    assert [i for i, m in enumerate(model) if isinstance(m, SplitLinear)] == [1, 3, 4]
    assert isinstance(reparametrize(nn.Linear(4, 5), 1), SplitLinear)
    for modules in ("absent", []):
        with pytest.raises(ValueError, match="must name a linear layer"):
            reparametrize(plain_model(), 2, modules=modules)
    with pytest.raises(ValueError, match="rank must be"):
        reparametrize(plain_model(), 0)


class Tied(nn.Module):
    """One layer under two names, and in a block with two names itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 24)
        self.block = self.again = nn.Sequential(self.first, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.block(self.first(x)))


@pytest.mark.parametrize("modules", ["*", "first", "again.0"])
def test_a_layer_with_several_names_stays_one(modules: str) -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(5, 24)
    want, state = model(x), copy.deepcopy(model.state_dict())
    reparametrize(model, 2, modules=modules)
    assert type(model.first) is SplitLinear
    assert model.first is model.block[0] is model.again[0]
    assert len(list(model.parameters())) == 5
    assert torch.allclose(model(x), want, atol=1e-5)
    plain = plain_state_dict(model)
    assert list(plain) == list(state)
    assert all(torch.allclose(plain[name], state[name], atol=1e-6) for name in state)
    unreparametrize(model)
    assert type(model.first) is nn.Linear
    assert model.first is model.block[0] is model.again[0]
    assert model.block is model.again


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_state_dict_post_hook",
        "register_load_state_dict_post_hook",
    ],
)
def test_hooks_are_not_lost(register: str) -> None:
    model = plain_model()
    hook = getattr(model[4], register)(lambda *args: None)
    with pytest.raises(ValueError, match="the module '4' has hooks"):
        reparametrize(model, 2)
    assert not any(isinstance(module, SplitLinear) for module in model)  # nor any layer before it
    reparametrize(model, 2, modules=["1", "3"])
    hook.remove()
    reparametrize(model, 2)
    hook = getattr(model[4], register)(lambda *args: None)
    with pytest.raises(ValueError, match="the module '4' has hooks"):
        unreparametrize(model)
    assert sum(isinstance(module, SplitLinear) for module in model) == 3
    hook.remove()
    assert type(unreparametrize(model)[4]) is nn.Linear


def test_dtype_mode_and_what_is_frozen_are_kept() -> None:
    plain = plain_model().to(torch.bfloat16).eval()
    plain[1].weight.requires_grad_(False)
    want = plain[1].weight.detach().clone()
    layer = reparametrize(plain, 2)[1]
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    assert not layer.training
    assert [p.requires_grad for p in (layer.left, layer.scale, layer.right, layer.residual)] == [False] * 4
    assert layer.bias.requires_grad
    assert torch.allclose(layer.weight.float(), want.float(), atol=2e-2)
    assert not unreparametrize(plain)[1].weight.requires_grad


def test_it_compiles_into_products_of_their_own() -> None:
    layer = reparametrize(nn.Linear(32, 48), 4)
    x = torch.randn(5, 32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)


def test_the_documented_example_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    space: dict[str, Any] = {}
    exec(example, space)
    assert set(space["weights"]) == {"0.weight", "0.bias", "2.weight", "2.bias"} == set(space["model"].state_dict())
    assert space["loss"].isfinite()
