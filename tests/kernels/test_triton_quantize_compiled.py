"""A compiled model quantizes with the Triton kernel: each tensor in one call, byte for byte."""

from __future__ import annotations

from typing import Any

import by_hand
import pytest
import torch
from same_bytes import assert_same_parts
from torch import Tensor, nn

from metis_compile import Policy
from metis_compile.numerics import QuantSpec, encode, noise_shape, uniform_noise

pytest.importorskip("triton")

from metis_compile.kernels.quantize import tiles

NEAREST = """
[recipe.w4a4g4]
weight = { format = "nvfp4" }
activation = { format = "nvfp4" }
gradient = { format = "nvfp4" }
[[rule]]
recipe = "w4a4g4"
"""


def step(run: Any, model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradients of a training step."""
    torch.manual_seed(1)
    x = torch.randn(2, 20, 48, dtype=dtype, requires_grad=True)
    y = run(x)
    y.backward(torch.randn(2, 20, 40, dtype=dtype))
    gradients = [x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad(set_to_none=True)
    return [y.detach(), *(g for g in gradients if g is not None)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int], bool]]:
    """What the kernel was called for: spec, axes, whether with a mean. Each call is checked byte for byte."""
    seen: list[tuple[str, list[int], bool]] = []
    run = tiles.quantize_tiles

    def checked(
        x: Tensor, spec: QuantSpec, axes: Any, *, out: Any, mean: Any, amax: Any, seed: Any, streams: Any
    ) -> None:
        run(x, spec, axes, out=out, mean=mean, amax=amax, seed=seed, streams=streams)
        centered = x.float() if mean is None else x.float() - mean
        assert amax is None or torch.equal(amax, centered.abs().amax())
        for i, axis in enumerate(axes):
            noise = None if seed is None else uniform_noise(seed, streams[i], noise_shape(x.shape, spec, axis))
            expected = encode(centered, spec, axis, noise)
            assert_same_parts([*out[2 * i : 2 * i + 2], *out[2 * len(axes) :]], expected, spec, f"axis {axis}")
        seen.append((str(spec), sorted(axes), mean is not None))

    monkeypatch.setattr(tiles, "quantize_tiles", checked)
    return seen


def compiled(model: nn.Module, policy: Any) -> Any:
    return torch.compile(model, backend="metis", options={"policy": policy, "max_autotune_gemm": False})


def test_a_linear_quantizes_each_tensor_in_one_call(triton_on_cpu: Any, calls: list[Any]) -> None:
    model = nn.Linear(48, 40)
    actual = step(compiled(model, Policy.from_toml(NEAREST)), model, torch.float32)
    spec = "nvfp4 1x16 nearest"
    # Forward: the activation for fprop and wgrad, the weight. Backward: the gradient for dgrad and wgrad, the weight.
    assert sorted(calls) == sorted([(spec, [0, 1], False)] * 2 + [(spec, [1], False), (spec, [0], False)])
    with by_hand.ByHand(by_hand.uniform(spec)):
        expected = step(model, model, torch.float32)
    for a, b in zip(actual, expected, strict=True):
        by_hand.assert_same(a, b, by_hand.SUMMATION_ORDER)


def test_a_mean_is_subtracted_by_the_kernel(triton_on_cpu: Any, calls: list[Any]) -> None:
    model = nn.Linear(48, 40).bfloat16()
    step(compiled(model, "averis"), model, torch.bfloat16)
    assert ("nvfp4 1x16 nearest", [0, 1], True) in calls
    assert ("nvfp4 1x16 stochastic round_up", [0, 1], False) in calls
