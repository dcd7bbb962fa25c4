"""Blocks that Inductor compiles one by one, where rules tell them apart: values and gradients of the whole model."""

from __future__ import annotations

import torch
from torch import Tensor
from wrapped import TOKENS, Model, make

from metis_compile import Policy

POLICY = Policy.from_toml(
    """
    extends = "nvfp4"
    [recipe.nearest]
    weight = "nvfp4"
    activation = "nvfp4"
    gradient = "nvfp4"
    [[rule]]
    module = "layers.1.*"
    recipe = "nearest"
    [[rule]]
    recipe = "high"
    """,
    name="one-block.toml",
)


def step(model: Model) -> list[Tensor]:
    result = model(TOKENS)
    result.pow(2).sum().backward()
    return [result.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_blocks_with_rules_of_their_own_compiled_one_by_one() -> None:
    options = {"policy": POLICY}
    whole, parts, high = make(), make(), make()
    whole.compile(backend="metis", options=options)
    for layer in parts.layers:
        layer.compile(backend="metis", options=options)
    one, other, plain = step(whole), step(parts), step(high)
    assert len(one) == len(other) == len(plain)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert any((a - b).abs().max() > 1e-2 * b.abs().max() for a, b in zip(one, plain, strict=True))
