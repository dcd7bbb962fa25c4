"""The blocks of bench's Llama, against transformers' model of the same sizes and weights."""

from typing import Any

import pytest
import torch

from metis_compile import explain
from metis_compile.bench.size import settings_of
from metis_compile.train.errors import TrainError
from metis_compile.train.llama_block import LlamaBlocks, hidden_width, key_value_heads
from metis_compile.train.model import Shape
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import build

NAMES = {
    "token": "model.embed_tokens",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "norm": "model.norm",
    "blocks": "model.layers",
    "attn": "self_attn",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "out": "o_proj",
}


def test_it_is_what_transformers_calls_a_llama() -> None:
    transformers = pytest.importorskip("transformers")
    shape = Shape(vocabulary=64, width=64, layers=2, heads=8, context=24)
    model = LlamaBlocks(shape)
    config: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 224,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 24,
        "rms_norm_eps": 1e-5,
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    state = {".".join(NAMES.get(part, part) for part in name.split(".")): t for name, t in model.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    tokens = torch.randint(64, (3, 24))
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(tokens)[:, :7], model(tokens[:, :7]), rtol=1e-5, atol=1e-6)  # a shorter sequence


def test_the_proportions_are_those_of_8b_parameters() -> None:
    settings = settings_of(width=4096, layers=1, tokens=8192, device="cpu", dtype="bfloat16", model="llama-8b-block")
    assert (settings.heads, settings.context, settings.batch) == (32, 2048, 4)
    assert (hidden_width(4096), key_value_heads(32)) == (14336, 8)
    assert (hidden_width(128), key_value_heads(1), key_value_heads(2)) == (448, 1, 2)
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in build(settings).named_parameters()}
    blocks = sum(n for name, n in sizes.items() if name.startswith("blocks."))
    assert blocks == 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert sum(sizes.values()) - blocks == 2 * 256 * 4096 + 4096


@pytest.mark.parametrize("policy", ["fp8", "nvfp4"])
def test_every_linear_of_a_block_is_under_the_policy(policy: str) -> None:
    size = settings_of(width=128, layers=1, tokens=32, device="cpu", dtype="bfloat16", model="llama-8b-block")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explain(build(size), torch.zeros(1, 32, dtype=torch.int64), policy=policy)
    rewritten = {(site.module, site.gemm) for site in found.sites if site.reason is None}
    linears = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert rewritten >= {(f"blocks.0.{name}", gemm) for name in linears for gemm in ("fprop", "dgrad", "wgrad")}


def test_heads_that_cannot_turn() -> None:
    with pytest.raises(TrainError, match="width / heads must be even for rotary positions, got 33 / 1"):
        Settings(model="llama-8b-block", width=33, heads=1)
