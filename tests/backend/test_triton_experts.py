"""Training steps of a mixture's experts, whose grouped products run in Triton templates, on packed operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from by_hand import BFLOAT16_DRAWS, SUMMATION_ORDER, assert_same
from long_tail import sampled
from training_step import LAYERS, compiled_step, gemm_calls, reference_step, start_mixture, step

from metis_compile.compat import autotune

TOKENS, INPUTS, HIDDEN, OUTPUTS = 83, 36, 24, 20
ENDS = [21, 21, 50, 79]  # an expert without tokens; four tokens of none


@pytest.fixture
def templates(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The template is chosen, in its smallest configuration; a number for each product: how many choices there were."""
    from metis_compile.kernels.gemm import lowering

    made: list[int] = []

    def first(name: str, choices: list[Any], nodes: list[Any], layout: Any, **how: Any) -> Any:
        made.append(len(choices))
        return autotune(name, choices[:1], nodes, layout, **how)

    def smallest(configs: Sequence[Any], m: int, n: int) -> Sequence[Any]:
        return [min(configs, key=lambda c: c.block_m * c.block_n * c.block_k)]

    monkeypatch.setattr(lowering, "configs_for", smallest)
    monkeypatch.setattr(lowering, "autotune", first)
    return made


@pytest.mark.parametrize(
    "preset", sampled(["nvfp4", "averis", "metis", "mxfp8", "fp8"], ["nvfp4", "metis", "mxfp8", "fp8"])
)
def test_a_training_step(templates: list[int], preset: str) -> None:
    model, x = start_mixture(ENDS, TOKENS, INPUTS, HIDDEN, OUTPUTS)
    actual, codes, graph = compiled_step(model, x, preset, max_autotune_gemm=False)
    assert templates == [2] * 3 * LAYERS
    assert gemm_calls(codes) == (3 * LAYERS, 0)
    if preset == "nvfp4":
        packed = sum((TOKENS + 1) // 2 * n + -(-TOKENS // 16) * n + 4 for n in (INPUTS, HIDDEN))
        # and ReLU's mask, the seed, where groups end, and which tokens are in one
        assert graph.saved_bytes == packed + TOKENS * HIDDEN + 8 + 4 * len(ENDS) + TOKENS
    assert not actual["y"][ENDS[-1] :].any()
    assert_same(actual, reference_step(model, x, preset), SUMMATION_ORDER)


def test_scales_stay_in_rows_where_others_are_swizzled(templates: list[int], triton_on_cpu: Any) -> None:
    """On 10.x: a group of tokens begins within a tile of 128."""
    triton_on_cpu.capability = 100
    model, x = start_mixture(ENDS, TOKENS, INPUTS, HIDDEN, OUTPUTS)
    actual, codes, _ = compiled_step(model, x, "nvfp4", max_autotune_gemm=False)
    assert templates == [2] * 3 * LAYERS
    assert gemm_calls(codes) == (3 * LAYERS, 0)
    assert_same(actual, reference_step(model, x, "nvfp4"), SUMMATION_ORDER)


def test_bfloat16(templates: list[int]) -> None:
    """By torch's own operator. Inductor keeps what lies between two products in float32: backward draws differ."""
    model, x = start_mixture(ENDS, TOKENS, 32, 24, 16)
    actual, codes, _ = compiled_step(model.bfloat16(), x.bfloat16(), "nvfp4", max_autotune_gemm=False)
    assert gemm_calls(codes) == (3 * LAYERS, 0)
    reference = reference_step(model, x.bfloat16(), "nvfp4")
    assert_same({"y": actual["y"]}, {"y": reference["y"]}, BFLOAT16_DRAWS)


def test_any_number_of_tokens(templates: list[int]) -> None:
    """Compiled once: how many tiles there are is worked out when it runs."""
    model, _ = start_mixture(ENDS, TOKENS, INPUTS, HIDDEN, OUTPUTS)
    inputs = [start_mixture(ENDS, tokens, INPUTS, HIDDEN, OUTPUTS)[1] for tokens in (83, 97, 80)]
    expected = [reference_step(model, x, "averis") for x in inputs]
    torch.compiler.reset()
    options = {"policy": "averis", "fallback_random": True, "max_autotune_gemm": False}
    run = torch.compile(model, backend="metis", dynamic=True, options=options)
    for x, wanted in zip(inputs, expected, strict=True):
        model.zero_grad()
        assert_same(step(model, run, x), wanted, SUMMATION_ORDER)
    assert templates == [2] * 3 * LAYERS
