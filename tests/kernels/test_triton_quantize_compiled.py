"""A compiled model quantizes with the Triton kernel: each tensor in one call, byte for byte."""

from __future__ import annotations

from typing import Any

import by_hand
import pytest
import torch
from long_tail import sampled
from same_bytes import assert_same_parts
from torch import Tensor, nn

from metis_compile import Policy
from metis_compile.conditioning import hadamard
from metis_compile.numerics import QuantSpec, encode, noise_shape, uniform_noise

pytest.importorskip("triton")

from metis_compile.kernels.quantize import tiles
from metis_compile.passes.lowering import fused_quantize

NEAREST = """
[recipe.w4a4g4]
weight = { format = "nvfp4" }
activation = { format = "nvfp4" }
gradient = { format = "nvfp4" }
[[rule]]
recipe = "w4a4g4"
"""


def step(run: Any, model: nn.Module, dtype: torch.dtype, tokens: int = 20) -> list[Tensor]:
    """The output and the gradients of a training step."""
    torch.manual_seed(1)
    x = torch.randn(2, tokens, 48, dtype=dtype, requires_grad=True)
    y = run(x)
    y.backward(torch.randn(2, tokens, 40, dtype=dtype))
    gradients = [x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad(set_to_none=True)
    return [y.detach(), *(g for g in gradients if g is not None)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int], str]]:
    """What the kernel was called for: spec, axes, what it is given beside x. Each call is checked.

    Byte for byte, but for sums: after these an element now and then rounds to its other neighbour.
    """
    from metis_compile.kernels.quantize.source import Source

    seen: list[tuple[str, list[int], str]] = []
    run = tiles.quantize_tiles

    def checked(
        source: Source, spec: QuantSpec, axes: Any, *, out: Any, amax: Any, seed: Any, streams: Any, swizzled: Any
    ) -> None:
        run(source, spec, axes, out=out, amax=amax, seed=seed, streams=streams, swizzled=swizzled)
        assert len(swizzled) == 0, "not on this GPU"
        value = source.x.float() if source.mean is None else source.x.float() - source.mean
        if source.left is not None:
            value = value - source.left.float() @ source.right.float()
        if source.signs is not None:
            value = hadamard(value, axes[0], source.signs)
        if amax is not None:
            torch.testing.assert_close(amax, value.abs().amax(), rtol=1e-6 if source.made else 0, atol=0)
        for i, axis in enumerate(axes):
            noise = None if seed is None else uniform_noise(seed, streams[i], noise_shape(value.shape, spec, axis))
            expected = encode(value, spec, axis, noise)
            parts = [*out[2 * i : 2 * i + 2], *out[2 * len(axes) :]]
            if source.made:
                assert (parts[0] != expected[0]).float().mean() < 5e-3
            else:
                assert_same_parts(parts, expected, spec, f"axis {axis}")
        given = [name for name, tensor in zip(source._fields[1:], source[1:], strict=True) if tensor is not None]
        seen.append((str(spec), sorted(axes), " ".join(given)))

    monkeypatch.setattr(tiles, "quantize_tiles", checked)
    return seen


def compiled(model: nn.Module, policy: Any) -> Any:
    return torch.compile(model, backend="metis", options={"policy": policy, "max_autotune_gemm": False})


def test_a_linear_quantizes_each_tensor_in_one_call(triton_on_cpu: Any, calls: list[Any]) -> None:
    model = nn.Linear(48, 40)
    actual = step(compiled(model, Policy.from_toml(NEAREST)), model, torch.float32)
    spec = "nvfp4 1x16 nearest"
    # Forward: the activation for fprop and wgrad, the weight. Backward: the gradient for dgrad and wgrad, the weight.
    assert sorted(calls) == sorted([(spec, [0, 1], "")] * 2 + [(spec, [1], ""), (spec, [0], "")])
    with by_hand.ByHand(by_hand.uniform(spec)):
        expected = step(model, model, torch.float32)
    for a, b in zip(actual, expected, strict=True):
        by_hand.assert_same(a, b, by_hand.SUMMATION_ORDER)


def test_a_mean_is_subtracted_by_the_kernel(triton_on_cpu: Any, calls: list[Any]) -> None:
    model = nn.Linear(48, 40).bfloat16()
    step(compiled(model, "averis"), model, torch.bfloat16)
    assert ("nvfp4 1x16 nearest", [0, 1], "mean") in calls
    assert ("nvfp4 1x16 stochastic round_up", [0, 1], "") in calls


SPLIT = """
[recipe.r]
weight = {{ format = "nvfp4" }}
activation = {{ format = "nvfp4"{activation} }}
gradient = {{ format = "nvfp4"{gradient} }}
[[rule]]
recipe = "r"
"""
SPECTRAL = ', split = {{ kind = "spectral", rank = 3{how} }}'


def policy(activation: str = "", gradient: str = "") -> Policy:
    return Policy.from_toml(SPLIT.format(activation=activation, gradient=gradient))


@pytest.mark.parametrize(("side", "dtype"), [("activation", torch.bfloat16), ("gradient", torch.float32)], ids=str)
def test_a_thin_product_is_subtracted_by_the_kernel(
    triton_on_cpu: Any, calls: list[Any], side: str, dtype: torch.dtype
) -> None:
    model = nn.Linear(48, 40).to(dtype)
    step(compiled(model, policy(**{side: SPECTRAL.format(how="")})), model, dtype)
    spec = "nvfp4 1x16 nearest"
    assert sorted(calls) == sorted([(spec, [0, 1], "left right"), (spec, [0, 1], ""), (spec, [1], ""), (spec, [0], "")])


def test_a_mean_and_a_thin_product(triton_on_cpu: Any, calls: list[Any]) -> None:
    model = nn.Linear(48, 40)
    chain = ', split = ["mean", { kind = "spectral", rank = 3 }]'
    step(compiled(model, policy(chain)), model, torch.float32)
    assert ("nvfp4 1x16 nearest", [0, 1], "mean left right") in calls


def test_float32_factors_stay_so(triton_on_cpu: Any, calls: list[Any]) -> None:
    model = nn.Linear(48, 40)
    step(compiled(model, policy(SPECTRAL.format(how=', factors = "high"'))), model, torch.float32)
    assert ("nvfp4 1x16 nearest", [0, 1], "left right") in calls


TURNED = """
[recipe.plain]
weight = {{ format = "nvfp4" }}
activation = {{ format = "nvfp4" }}
gradient = {{ format = "nvfp4" }}
[recipe.turned]
extends = "plain"
activation = {{ format = "nvfp4", hadamard = "{signs}"{split} }}
gradient = {{ format = "nvfp4", hadamard = "{signs}" }}
[[rule]]
gemm = "wgrad"
recipe = "turned"
[[rule]]
recipe = "plain"
"""


@pytest.mark.parametrize("signs", sampled(["fixed", "fresh"], ["fresh"]))
def test_transforms_are_the_kernels(
    triton_on_cpu: Any, calls: list[Any], signs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(48, 40)
    given = Policy.from_toml(TURNED.format(signs=signs, split=""))
    actual = step(compiled(model, given), model, torch.float32, tokens=24)
    spec = "nvfp4 1x16 nearest"
    made = [(spec, [0], "signs"), (spec, [1], "")] * 2 + [(spec, [1], ""), (spec, [0], "")]
    assert sorted(calls) == sorted(made)
    torch.compiler.reset()
    monkeypatch.setattr(fused_quantize, "_transformed", lambda *_: None)
    expected = step(compiled(model, given), model, torch.float32, tokens=24)
    for a, b in zip(actual, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-2
    assert not any("signs" in what for _, _, what in calls[len(made) :])


def test_a_transform_that_fills_up_its_last_block_is_inductors(triton_on_cpu: Any, calls: list[Any]) -> None:
    model = nn.Linear(48, 40)
    step(compiled(model, Policy.from_toml(TURNED.format(signs="fixed", split=""))), model, torch.float32, tokens=20)
    assert len(calls) == 6
    assert not any("signs" in what for _, _, what in calls)


def test_a_residual_is_transformed_by_the_kernel(triton_on_cpu: Any, calls: list[Any]) -> None:
    model = nn.Linear(48, 40)
    given = Policy.from_toml(TURNED.format(signs="fixed", split=', split = "mean"'))
    step(compiled(model, given), model, torch.float32, tokens=24)
    assert ("nvfp4 1x16 nearest", [0], "mean signs") in calls


@pytest.mark.parametrize("kind", ["spectral", "transform"])
def test_symbolic_sizes(triton_on_cpu: Any, calls: list[Any], kind: str) -> None:
    """A thin product is the kernel's; of a transform it is not known whether its last block is whole."""
    model = nn.Linear(48, 40)
    text = {"spectral": SPECTRAL.format(how=""), "transform": ""}[kind]
    given = policy(text) if text else Policy.from_toml(TURNED.format(signs="fixed", split=""))
    run = torch.compile(model, backend="metis", dynamic=True, options={"policy": given, "max_autotune_gemm": False})
    for tokens in (16, 24):
        step(run, model, torch.float32, tokens=tokens)
    assert len(calls) == 2 * (4 if text else 6)
    assert any(what == "left right" for _, _, what in calls) == bool(text)
    assert not any("signs" in what for _, _, what in calls)
