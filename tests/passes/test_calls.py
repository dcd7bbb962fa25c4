"""The typed views of our operators, on graphs of five nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.ops.residual import RESIDUAL
from metis_compile.passes.graph.calls import DequantizeCall, QuantizeCall, ResidualCall

NEAREST, RANDOM = "nvfp4 1x16 nearest", "nvfp4 1x16 stochastic round_up"


def nodes(run: Any, *inputs: torch.Tensor) -> list[Any]:
    return list(make_fx(run, tracing_mode="fake")(*inputs).graph.nodes)


def found(nodes: list[Any], target: Any) -> fx.Node:
    (node,) = (n for n in nodes if n.target is target)
    return node


def test_of_a_quantization() -> None:
    def run(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return QUANTIZE(x, RANDOM, -1, seed, 7, swizzled=True)[1]

    x, seed, *rest = nodes(run, torch.randn(16, 32), torch.tensor([1]))
    call = QuantizeCall.of(found(rest, QUANTIZE))
    assert call is not None
    assert (call.x, str(call.spec), call.axis, call.seed, call.stream, call.swizzled) == (x, RANDOM, 1, seed, 7, True)
    assert {part.args[1] for part in call.parts} == {0, 1, 2}
    assert QuantizeCall.of(x) is None
    assert DequantizeCall.of(call.node) is None


def test_what_is_not_said_has_the_operators_defaults() -> None:
    call = QuantizeCall.of(found(nodes(lambda x: QUANTIZE(x, NEAREST, 0)[0], torch.randn(16, 32)), QUANTIZE))
    assert call is not None
    assert (call.axis, call.seed, call.stream, call.swizzled) == (0, None, 0, False)


def test_of_a_decoding_and_what_made_its_parts() -> None:
    def run(x: torch.Tensor, scale: torch.Tensor) -> list[torch.Tensor]:
        parts = QUANTIZE(x, NEAREST, 1)
        return [DEQUANTIZE(parts, NEAREST, -1, 30), DEQUANTIZE([*parts[:2], scale], NEAREST, 1, 30)]

    every = nodes(run, torch.randn(4, 30), torch.ones(()))
    whole, mixed = (DequantizeCall.of(node) for node in every if node.target is DEQUANTIZE)
    assert whole is not None
    assert (str(whole.spec), whole.axis, whole.length, len(whole.parts)) == (NEAREST, 1, 30, 3)
    assert whole.source == QuantizeCall.of(found(every, QUANTIZE))
    assert mixed is not None
    assert mixed.source is None


def test_of_a_residual() -> None:
    def run(x: torch.Tensor, mean: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> list[torch.Tensor]:
        return [RESIDUAL(x, mean), RESIDUAL(x, None, left, right), RESIDUAL(x, mean, left, right)]

    x, mean, left, right, *rest = nodes(run, *map(torch.randn, [(8, 16), (1, 16), (8, 2), (2, 16)]))
    calls = [ResidualCall.of(node) for node in rest if node.target is RESIDUAL]
    assert [(call.x, call.mean, call.left, call.right) for call in calls if call is not None] == [
        (x, mean, None, None),
        (x, None, left, right),
        (x, mean, left, right),
    ]
    assert ResidualCall.of(x) is None
