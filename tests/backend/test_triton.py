"""Training steps whose products run in Triton templates, on packed operands from the forward to the backward."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from by_hand import SUMMATION_ORDER, assert_same
from cross_compile import cross_compile_generated
from long_tail import sampled
from memory_accesses import Call, calls_in
from training_step import LAYERS, PRESETS, compiled_step, gemm_calls, reference_step, start, step

from metis_compile.compat import autotune

QUANTIZE = "torch.ops.metis.quantize_tiles_into.default"
TOKENS, INPUTS, HIDDEN, OUTPUTS = 19, 36, 24, 21
# Products of a layer that read no codes, all thin: means, powers of bases, what splits take, add and compensate.
THIN = {"averis": 1, "metis": 12, "best": 7, "metis-fp8": 7}
# In E4M3 such an element is a few 1e-4, and there are more: 16 of 36 directions leave a residual as small as the order
# of sums changes it. Nothing quantized at all would be 1e-3 to 5e-2.
FLIPS = 5e-4


@pytest.fixture
def templates(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The template is chosen, in its smallest configuration; a number for each product: how many choices there were."""
    from metis_compile.kernels.gemm import lowering

    made: list[int] = []

    def first(name: str, choices: list[Any], nodes: list[Any], layout: Any) -> Any:
        made.append(len(choices))
        return autotune(name, choices[:1], nodes, layout)

    def smallest(configs: Sequence[Any], m: int, n: int) -> Sequence[Any]:
        return [min(configs, key=lambda c: c.block_m * c.block_n * c.block_k)]

    monkeypatch.setattr(lowering, "configs_for", smallest)
    monkeypatch.setattr(lowering, "autotune", first)
    return made


def tokens_for(preset: str) -> int:
    """More for 16 directions: of 19 tokens they leave little but what the order of sums changes."""
    return {"best": 83, "metis-fp8": 131}.get(preset, TOKENS)


def saved_bytes(preset: str, tokens: int) -> int:
    """What forward keeps: both inputs, packed along the tokens; ReLU's mask; the seed of what rounds at random."""
    kept = tokens * HIDDEN + (0 if preset in ("metis-fp8", "mxfp8", "fp8") else 8)
    for features in (INPUTS, HIDDEN):
        packed = {
            "nvfp4": (tokens + 1) // 2 * features + -(-tokens // 16) * features + 4,
            "mxfp4": (tokens + 1) // 2 * features + -(-tokens // 32) * features,
            "mxfp8": tokens * features + -(-tokens // 32) * features,
            "fp8": tokens * features + 4,
            "metis-fp8": tokens * features + 4 * -(-tokens // 128) * features,
        }
        factors = {"averis": features, "metis": tokens + features, "best": 16 * (tokens + features)}
        factors["metis-fp8"] = factors["best"]
        kept += packed.get(preset, packed["nvfp4"]) + 2 * factors.get(preset, 0)
    return kept


def assert_products_read_what_was_quantized(calls: list[Call]) -> None:
    """Nothing transposes, decodes or copies codes: the quantize kernel wrote them, or forward saved them."""
    products = [call for call in calls if call.kernel.startswith("triton_tem_")]
    assert products
    for codes in (product.arguments[side] for product in products for side in ("arg_A", "arg_B")):
        assert [call for call in calls if codes in call.writes] == []
        if codes.startswith("buf"):  # a list of outputs is an argument
            assert sum(codes in call.reads for call in calls if call.kernel == QUANTIZE) == 1


@pytest.mark.parametrize("preset", sampled(PRESETS, lambda preset: preset not in ("averis", "mxfp4")))
def test_a_training_step(templates: list[int], preset: str) -> None:
    model, x = start(tokens_for(preset), INPUTS, HIDDEN, OUTPUTS)
    actual, codes, graph = compiled_step(model, x, preset, max_autotune_gemm=False)
    code = "\n".join(codes)
    assert templates == [2] * 3 * LAYERS
    assert gemm_calls(codes) == (3 * LAYERS, 0)
    quantized = 4 * LAYERS  # forward: X and W; backward: G and W
    if preset == "fp8":  # whole tensors, in Inductor's own kernels: codes once for each, and no copies
        assert len(re.findall(r"empty_strided_\w+\(.*, torch\.uint8\)", code)) == quantized
    else:
        assert code.count(f"{QUANTIZE}(") == quantized
        for each in codes:
            assert_products_read_what_was_quantized(calls_in(each))
    thin = len(re.findall(r"extern_kernels\.(?:add)?mm\(", code))
    assert thin == THIN.get(preset, 0) * LAYERS
    assert graph.saved_bytes == saved_bytes(preset, tokens_for(preset))
    # The order of sums; weights that are off by 1e-7 give no more. An element that rounded the other way would be 1e-2.
    assert_same(actual, reference_step(model, x, preset), FLIPS if preset == "metis-fp8" else SUMMATION_ORDER)


# Whether products alone read the saved inputs: factors of split gradients multiply them decoded.
SAVED_SWIZZLED = {"nvfp4": True, "averis": True, "metis": False, "best": True, "mxfp4": True, "mxfp8": True}


@pytest.mark.parametrize("preset", sampled(SAVED_SWIZZLED, ["averis", "metis", "mxfp4"]))
def test_a_training_step_where_scales_are_swizzled(triton_on_cpu: Any, templates: list[int], preset: str) -> None:
    """On compute capability 10.0 the kernel writes scales, and forward saves them, as tensor cores take them."""
    triton_on_cpu.capability = 100
    tokens = 83
    model, x = start(tokens, INPUTS, HIDDEN, OUTPUTS)
    actual, codes, graph = compiled_step(model, x, preset, max_autotune_gemm=False)
    assert templates == [2] * 3 * LAYERS
    assert gemm_calls(codes) == (3 * LAYERS, 0)
    for each in codes:
        assert_products_read_what_was_quantized(calls_in(each))
    scales = [t for t in graph.saved if t.dtype in (torch.float8_e4m3fn, torch.float8_e8m0fnu)]
    blocks = -(-tokens // (16 if "mx" not in preset else 32))
    swizzled = SAVED_SWIZZLED[preset]
    assert {t.shape for t in scales} == (
        {(1, -(-blocks // 4), 32, 4, 4)} if swizzled else {(blocks, features) for features in (INPUTS, HIDDEN)}
    )
    added = 2 * 512 * -(-blocks // 4) - blocks * (INPUTS + HIDDEN) if swizzled else 0
    assert graph.saved_bytes == saved_bytes(preset, tokens) + added
    assert_same(actual, reference_step(model, x, preset), SUMMATION_ORDER)


@pytest.mark.parametrize(
    ("preset", "capability"),
    sampled(
        [("nvfp4", 90), ("averis", 90), ("mxfp4", 90), ("nvfp4", 100), ("mxfp8", 100)], [("averis", 90), ("mxfp8", 100)]
    ),
)
def test_any_number_of_tokens(triton_on_cpu: Any, templates: list[int], preset: str, capability: int) -> None:
    """Compiled once, for two blocks of tokens or more: sizes of codes are worked out in the kernels."""
    triton_on_cpu.capability = capability
    model, _ = start(TOKENS, INPUTS, HIDDEN, OUTPUTS)
    inputs = [start(tokens, INPUTS, HIDDEN, OUTPUTS)[1] for tokens in (39, 50, 33)]
    expected = [reference_step(model, x, preset) for x in inputs]
    torch.compiler.reset()
    options = {"policy": preset, "fallback_random": True, "max_autotune_gemm": False}
    run = torch.compile(model, backend="metis", dynamic=True, options=options)
    for x, wanted in zip(inputs, expected, strict=True):
        model.zero_grad()
        assert_same(step(model, run, x), wanted, SUMMATION_ORDER)
    assert templates == [2] * 3 * LAYERS


@pytest.mark.parametrize(
    ("preset", "capability", "instruction"),
    [
        ("metis", 90, "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16"),
        ("nvfp4", 100, "kind::mxf4nvf4.block_scale"),
    ],
    ids=["metis-90", "nvfp4-100"],
)
def test_its_kernels_compile_for_gpus(
    triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, preset: str, capability: int, instruction: str
) -> None:
    """All of them, forward's and backward's, with tiles as on a GPU, down to machine code."""
    from metis_compile.kernels.gemm import lowering

    def first(name: str, choices: list[Any], nodes: list[Any], layout: Any) -> Any:
        return autotune(name, choices[:1], nodes, layout)

    triton_on_cpu.capability = capability
    monkeypatch.setattr(lowering, "configs_for", lambda configs, m, n: configs[:1])
    monkeypatch.setattr(lowering, "autotune", first)
    model, x = start(TOKENS, INPUTS, HIDDEN, OUTPUTS)
    _, codes, _ = compiled_step(model, x, preset, max_autotune_gemm=False)
    built = [kernel for code in codes for kernel in cross_compile_generated(code, capability).items()]
    products = [kernel.ptx for name, kernel in built if "_tem_" in name]
    assert len(built) > len(products) >= 3
    assert all(instruction in ptx for ptx in products)
    assert all(("tcgen05.cp" in ptx) == (capability == 100) for ptx in products)
