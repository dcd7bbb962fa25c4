"""Kinds of products by the names of modules, under any prefix."""

from __future__ import annotations

import pytest

from metis_compile.policy.kinds import kind_by_name

HEADS = [
    "lm_head",  # GPT-2, Llama, Qwen
    "lm_head.decoder",  # RoBERTa
    "head",  # nanoGPT
    "head.fc",  # timm
    "embed_out",  # GPT-NeoX
    "output",  # torchtitan
    "proj_out",  # Whisper
    "cls.predictions.decoder",  # BERT
    "decoder",  # ModernBERT
    "generator_lm_head",  # ELECTRA
    "classifier",
    "classifier.out_proj",
    "score",
    "qa_outputs",
    "visual_projection",  # CLIP
    "text_projection",
]
LINEARS = [
    "",
    "model.layers.0.mlp.gate_proj",
    "model.layers.0.mlp.gate",  # of a SwiGLU, for all that its name tells
    "model.layers.0.self_attn.q_proj",
    "transformer.h.0.attn.c_attn",
    "bert.encoder.layer.0.output.dense",
    "bert.encoder.layer.0.attention.output.dense",
    "blocks.0.heads.1.q",
    "model.decoder.layers.0.fc1",
]
IN_BLOCKS = ["blocks.3.attn.proj_out", "layers.3.output", "layers.0.decoder"]


@pytest.mark.parametrize("prefix", ["", "model.", "net.inner."])
@pytest.mark.parametrize("module", HEADS)
def test_heads_under_any_prefix(prefix: str, module: str) -> None:
    assert kind_by_name(prefix + module, in_block=False) == "head"


@pytest.mark.parametrize("module", LINEARS)
def test_other_linears_are_of_no_kind(module: str) -> None:
    assert kind_by_name(module, in_block="layers." in module or ".0." in module) is None


@pytest.mark.parametrize("module", IN_BLOCKS)
def test_names_that_are_heads_outside_of_blocks_only(module: str) -> None:
    assert kind_by_name(module, in_block=True) is None
    assert kind_by_name(module.rpartition(".")[2], in_block=False) == "head"


def test_a_decoder_that_is_no_linear_is_no_head() -> None:
    assert kind_by_name("model.decoder", in_block=False, own_weight=False) is None


@pytest.mark.parametrize("module", ["encoder.block.1.layer.1.mlp.router.classifier", "mlp.router", "moe.gate.wg"])
def test_routers(module: str) -> None:
    assert kind_by_name(module, in_block=True) == "router"


@pytest.mark.parametrize("module", ["h.0.attn.c_attn.lora_A.default", "layers.1.wq.lora_b"])
def test_adapters(module: str) -> None:
    assert kind_by_name(module, in_block=True) == "adapter"
