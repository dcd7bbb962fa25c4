"""Models of transformers as people train them: accumulation, checkpointing, bfloat16, adapters, trl's SFTTrainer."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from trainer_runs import arguments
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer

import metis_compile
from metis_compile import Policy
from metis_compile.integrations.transformers import MetisCallback
from metis_compile.passes.graph.sites import Site

pytestmark = pytest.mark.usefixtures("eagerly")
VOCABULARY, TOKENS = 64, 16


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": TOKENS, "n_embd": 32, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def texts(count: int = 8) -> list[dict[str, Tensor]]:
    tokens = torch.randint(0, VOCABULARY, (count, TOKENS), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def fit(folder: Path, model: Any, policy: Policy | str | None, **given: Any) -> tuple[list[float], list[Site]]:
    """Losses of each step, and what was compiled. policy: None for a model that is not compiled."""
    torch.compiler.reset()
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "save_strategy": "no", **given}
    callbacks = [] if policy is None else [MetisCallback(policy, say=lambda _: None)]
    trainer = Trainer(model, arguments(folder, **settings), train_dataset=texts(), callbacks=callbacks)
    with metis_compile.capture() as captured:
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, [site for graph in captured.graphs for site in graph.sites]


# what people turn on together
SETTINGS: dict[str, Any] = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "bf16": True}


@functools.cache
def plain() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        return fit(Path(folder), gpt2(), None, **SETTINGS)[0]


def test_high_is_what_the_uncompiled_trainer_computes(tmp_path: Path) -> None:
    model = gpt2()
    model.compile(backend="metis")
    losses, sites = fit(tmp_path, model, "high", **SETTINGS)
    assert sites
    assert all(site.reason for site in sites)
    assert losses == pytest.approx(plain(), rel=2e-3)  # bfloat16's own rounding: Inductor casts at other places


@pytest.mark.parametrize("by_name", [True, False], ids=["by name", "model.compile"])
def test_every_linear_of_the_block_is_rewritten(tmp_path: Path, by_name: bool) -> None:
    """In forward, and in the forward that checkpointing runs again; the head, outside the block, is not."""
    model = gpt2()
    if not by_name:
        model.compile(backend="metis")
    how = {"torch_compile_backend": "metis"} if by_name else {}
    losses, sites = fit(tmp_path, model, "nvfp4", **SETTINGS, **how)
    rewritten = {(site.module, site.gemm) for site in sites if site.reason is None}
    linears = [f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert rewritten == {(name, gemm) for name in linears for gemm in ("fprop", "dgrad", "wgrad")}
    assert losses == pytest.approx(plain(), rel=2e-2)  # what four bits cost a model that has hardly learned
    assert losses != plain()


def test_what_is_evaluated(tmp_path: Path) -> None:
    """By name, Trainer evaluates the model that it was given, uncompiled: in full precision, where training is not."""

    def evaluated(*, by_name: bool = False, in_place: bool = False, trained: bool = True) -> float:
        torch.compiler.reset()
        AcceleratorState._reset_state(reset_partial_state=True)
        model = gpt2()
        if in_place:
            model.compile(backend="metis")
        how = {"torch_compile_backend": "metis"} if by_name else {}
        settings = arguments(tmp_path, max_steps=1, learning_rate=0.0, save_strategy="no", **how)
        callback = MetisCallback("nvfp4", say=lambda _: None)
        trainer = Trainer(model, settings, train_dataset=texts(), eval_dataset=texts(), callbacks=[callback])
        if trained:
            trainer.train()
        return trainer.evaluate()["eval_loss"]

    plain = evaluated(trained=False)
    assert evaluated(by_name=True) == plain
    quantized = evaluated(in_place=True)
    assert quantized != plain
    assert evaluated(by_name=True, trained=False) == quantized


def test_adapters_by_peft(tmp_path: Path) -> None:
    """A rule names the adapters; what is frozen needs no wgrad, and is quantized all the same."""
    policy = Policy.from_toml('extends = "nvfp4"\n[[rule]]\nmodule = "*.lora_{A,B}.*"\nrecipe = "high"')
    model = get_peft_model(gpt2(), LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True))
    model.compile(backend="metis")
    losses, sites = fit(tmp_path, model, policy)
    assert losses[1] < losses[0]  # the third batch is the first texts in another order
    done = {(site.module.partition("h.0.")[2], site.gemm): site.reason is None for site in sites}
    assert done["attn.c_attn", "fprop"]
    assert done["mlp.c_fc", "dgrad"]
    assert ("mlp.c_fc", "wgrad") not in done
    adapters = {key: rewritten for key, rewritten in done.items() if "lora" in key[0]}
    assert len(adapters) >= 5  # of both fprop and wgrad; the first linear's input needs no gradient
    assert not any(adapters.values())


def test_sft_trainer_of_trl(tmp_path: Path) -> None:
    """Its loss breaks the graph, and multiplies by the head's weight outside of it: what is rewritten is the block."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}, "<pad>"))
    data = datasets.Dataset.from_list([{"input_ids": text["input_ids"].tolist()} for text in texts()])
    said: list[str] = []
    model = gpt2()
    model.compile(backend="metis", dynamic=True)
    trainer = trl.SFTTrainer(
        model,
        trl.SFTConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            learning_rate=1e-2,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=data,
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
        callbacks=[MetisCallback("nvfp4", say=said.append)],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[1] < losses[0]
    (line,) = said
    assert line.startswith("metis: policy nvfp4.toml: 12 of 12 products rewritten in ")
