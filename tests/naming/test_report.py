"""One warning at the first compile: rules that match nothing, policies that rewrite nothing, parts of no model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from graphs import eager_backend
from torch import nn
from wrapped import TOKENS, make

from metis_compile import Policy, PolicyWarning


def warned(run: Any, reset: bool = True) -> list[str]:
    if reset:
        torch.compiler.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
        if result.requires_grad:
            result.sum().backward()
    return [str(w.message) for w in caught if issubclass(w.category, PolicyWarning)]


def policy(rules: str, name: str = "run.toml") -> Policy:
    return Policy.from_toml('extends = "nvfp4"\n' + rules, name=name)


def test_presets_say_nothing() -> None:
    for preset in ("high", "nvfp4", "nvidia"):
        model = torch.compile(make(), backend=eager_backend(preset))
        assert warned(lambda model=model: model(TOKENS)) == []


def test_a_rule_that_matches_no_module_is_one_warning() -> None:
    text = '[[rule]]\nmodule = "blocks.*"\nrecipe = "high"\n[[rule]]\nmodule = "layers.0.*"\nrecipe = "high"\n'
    model = torch.compile(make(), backend=eager_backend(policy(text)))
    (message,) = warned(lambda: model(TOKENS))
    assert message == (
        "metis: policy run.toml: run.toml rule 1 (module=blocks.*) matches nothing: the names in Model are such as "
        "layers.0.down, layers.0.up, layers.1.down; if this is a part of a model, say of which before the first call: "
        "metis_compile.name_modules(model)"
    )
    assert warned(lambda: model(TOKENS[:1]), reset=False) == []


def test_blocks_that_are_compiled_and_called_alone() -> None:
    model = make()
    backend = eager_backend("nvidia")
    for layer in model.layers:
        layer.compile(backend=backend)
    (message,) = warned(lambda: model.layers[1](model.layers[0](torch.randn(8, 32))))
    assert "nvidia.toml rule 1 (blocks=last 15%) matches nothing: Block has no numbered blocks; " in message


def test_a_rule_that_asks_for_what_no_product_has() -> None:
    text = '[[rule]]\nop = "einsum"\nrecipe = "high"\n[[rule]]\ngemm = "wgrad"\nrecipe = "high"\n'
    model = torch.compile(make(), backend=eager_backend(policy(text)))
    (message,) = warned(lambda: model(TOKENS))
    assert "run.toml rule 1 (op=einsum) matches nothing: no product has all that it asks for" in message
    assert "rule 2" not in message


def test_a_rule_for_backward_is_no_mistake_where_there_is_none() -> None:
    model = torch.compile(make(), backend=eager_backend(policy('[[rule]]\ngemm = "wgrad"\nrecipe = "high"\n')))
    with torch.no_grad():
        assert warned(lambda: model(TOKENS)) == []


def test_a_policy_that_rewrites_nothing() -> None:
    model = torch.compile(make(), backend=eager_backend(policy('[[rule]]\nblocks = "first 100%"\nrecipe = "high"\n')))
    (message,) = warned(lambda: model(TOKENS))
    assert "none of 21 products is rewritten: 18 are left as high: run.toml rule 1 (blocks=first 100%)" in message


def test_one_linear_alone_may_be_a_head() -> None:
    linear = torch.compile(nn.Linear(32, 32), backend=eager_backend("nvfp4"))
    (message,) = warned(lambda: linear(torch.randn(8, 32)))
    assert "a Linear is compiled and called by itself, so nothing tells whether it is a head" in message
