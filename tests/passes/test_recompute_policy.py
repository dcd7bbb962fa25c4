"""What crosses from forward to backward, read from the partitioned graphs."""

from __future__ import annotations

import pytest
import torch
from graphs import capture_graphs, count
from tiny import MLP, Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metis_compile import Captured, Policy
from metis_compile.ops.quantization import QUANTIZE


def policy(weight: str = "nvfp4", activation: str = "nvfp4", block: str = "") -> Policy:
    blocks = f', block = "{block}"' if block else ""
    return Policy.from_toml(
        f"""
        [recipe.r]
        weight = {{ format = "{weight}"{blocks} }}
        activation = {{ format = "{activation}" }}
        gradient = {{ format = "fp8_e5m2" }}
        [[rule]]
        has_weight = true
        recipe = "r"
        """
    )


def kept(captured: Captured) -> dict[str, int]:
    return {t.name: t.nbytes for t in captured.graphs[0].saved if not t.is_parameter}


TOKENS, WIDTH = 256, 64
PACKED = {torch.uint8, torch.float8_e4m3fn, torch.float8_e8m0fnu}
BITS = {"nvfp4": 4.5, "mxfp4": 4.25, "mxfp8": 8.25, "fp8": 8.0}


@pytest.mark.parametrize("format", BITS)
def test_a_linear_saves_its_input_packed(format: str) -> None:
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    captured = capture_graphs(nn.Linear(WIDTH, 32, bias=False), x, policy=policy(activation=format))
    saved = kept(captured)
    scale_per_tensor = 4 if format in ("nvfp4", "fp8") else 0
    assert sum(saved.values()) == TOKENS * WIDTH * BITS[format] / 8 + scale_per_tensor
    assert {t.dtype for t in captured.graphs[0].saved if t.shape and not t.is_parameter} <= PACKED


# Of [1024, 256]: codes and scales, and bfloat16 factors: of a mean 256, of r directions r * (1024 + 256).
PRESET_BITS = {
    "nvfp4": 4.5,
    "averis": 4.5 + 16 / 1024,
    "metis": 4.5 + 4 * 16 * (1 / 256 + 1 / 1024),
    "best": 4.5 + 16 * 16 * (1 / 256 + 1 / 1024),
    "metis-fp8": 8 + 32 / 128 + 16 * 16 * (1 / 256 + 1 / 1024),
    "mxfp4": 4.25,
}


@pytest.mark.parametrize("shape", [(1024, 256), (1, 1024, 256)], ids=str)
@pytest.mark.parametrize("preset", PRESET_BITS)
def test_what_presets_save_of_a_linear_s_input(preset: str, shape: tuple[int, ...]) -> None:
    captured = capture_graphs(nn.Linear(256, 256, bias=False), torch.randn(shape, requires_grad=True), policy=preset)
    scale_per_tensor = 0 if preset in ("metis-fp8", "mxfp4") else 4
    assert sum(kept(captured).values()) == 1024 * 256 * PRESET_BITS[preset] / 8 + scale_per_tensor


def test_plain_graph_saves_it_whole() -> None:
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    captured = capture_graphs(nn.Linear(WIDTH, 32, bias=False), x, policy="high")
    assert sum(kept(captured).values()) == TOKENS * WIDTH * 4


def test_bfloat16_saves_the_same() -> None:
    x = torch.randn(TOKENS, WIDTH, requires_grad=True, dtype=torch.bfloat16)
    captured = capture_graphs(nn.Linear(WIDTH, 32, bias=False).bfloat16(), x, policy=policy())
    assert sum(kept(captured).values()) == TOKENS * WIDTH * 4.5 / 8 + 4


def test_shared_input_is_saved_once() -> None:
    captured = capture_graphs(Attention(), torch.randn(4, 64, 32, requires_grad=True), policy=policy())
    names = [n for n in kept(captured) if n.endswith("_codes_wgrad")]
    assert len(names) == 2, "one for q, k and v, one for the output projection"


def test_an_activation_that_stays_alive_anyway_is_not_saved_twice() -> None:
    """tanh's backward reads its output: wgrad then quantizes that, in backward."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, 32, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.tanh(x))

    captured = capture_graphs(Model(), torch.randn(TOKENS, WIDTH, requires_grad=True), policy=policy())
    assert sum(kept(captured).values()) == TOKENS * WIDTH * 4
    assert count(captured.graphs[0].backward, QUANTIZE) == 3, "X, W, and G, whose one scale serves both products"


def test_a_square_weight_block_is_shared_and_not_saved() -> None:
    captured = capture_graphs(
        nn.Linear(WIDTH, 64, bias=False), torch.randn(TOKENS, WIDTH, requires_grad=True), policy=policy(block="16x16")
    )
    joint = captured.graphs[0].joint_after
    assert sum(n.name.startswith("linear_weight_quantized") for n in joint.graph.nodes) == 1
    assert not any("weight" in name for name in kept(captured))
    assert sum(kept(captured).values()) == TOKENS * WIDTH * 4.5 / 8 + 4


def test_per_tensor_fp8_shares_the_activation_and_saves_only_its_codes() -> None:
    captured = capture_graphs(
        nn.Linear(WIDTH, 64, bias=False), torch.randn(TOKENS, WIDTH, requires_grad=True), policy="fp8"
    )
    joint = captured.graphs[0].joint_after
    assert sum(n.name.startswith("linear_activation_quantized") for n in joint.graph.nodes) == 1
    assert sum(kept(captured).values()) == TOKENS * WIDTH + 4


def test_checkpointing_still_saves_only_the_region_s_input() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLP()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, torch.sin(x), use_reentrant=False)

    captured = capture_graphs(Model(), torch.randn(TOKENS, 32, requires_grad=True), policy=policy())
    assert sum(kept(captured).values()) == 2 * TOKENS * 32 * 4, "what sin reads, and what the region reads"
    assert count(captured.graphs[0].backward, QUANTIZE) > 4, "the forward's quantizations are done again"
