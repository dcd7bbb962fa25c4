"""Models of transformers as people train them: accumulation, checkpointing, bfloat16, adapters, trl's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from trainer_runs import arguments
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

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


@pytest.mark.parametrize("by_name", [True, False], ids=["by name", "model.compile"])
def test_high_is_what_the_uncompiled_trainer_computes(tmp_path: Path, by_name: bool) -> None:
    """And a policy is not, with every linear of the block rewritten: under bfloat16, checkpointing and accumulation."""
    settings = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "bf16": True}
    plain, _ = fit(tmp_path, gpt2(), None, **settings)
    losses = {}
    for policy in ("high", "nvfp4"):
        model = gpt2()
        how = {"torch_compile_backend": "metis"} if by_name else {}
        if not by_name:
            model.compile(backend="metis")
        losses[policy], sites = fit(tmp_path, model, policy, **settings, **how)
        rewritten = {site.module.rpartition(".")[2] for site in sites if site.reason is None}
        assert rewritten == ({"c_attn", "c_proj", "c_fc"} if policy == "nvfp4" else set())
    assert losses["high"] == pytest.approx(plain, rel=2e-3)  # of bfloat16, fused otherwise
    assert losses["nvfp4"] == pytest.approx(plain, rel=2e-2)
    assert losses["nvfp4"] != losses["high"]


def test_a_model_that_is_compiled_in_place_is_evaluated_as_it_is_trained(tmp_path: Path) -> None:
    """By name, Trainer evaluates the model itself, uncompiled: in full precision, where training is not."""
    losses = {}
    for name, by_name, compiled in (("plain", False, False), ("by name", True, False), ("in place", False, True)):
        model = gpt2()
        if compiled:
            model.compile(backend="metis")
        how = {"torch_compile_backend": "metis"} if by_name else {}
        settings = arguments(tmp_path, max_steps=1, learning_rate=0.0, save_strategy="no", **how)
        callback = MetisCallback("nvfp4", say=lambda _: None)
        trainer = Trainer(model, settings, train_dataset=texts(), eval_dataset=texts(), callbacks=[callback])
        trainer.train()
        losses[name] = trainer.evaluate()["eval_loss"]
    assert losses["by name"] == losses["plain"]
    assert losses["in place"] != losses["plain"]


def test_adapters_by_peft(tmp_path: Path) -> None:
    model = get_peft_model(gpt2(), LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True))
    model.compile(backend="metis")
    losses, sites = fit(tmp_path, model, "nvfp4")
    assert losses[-1] < losses[0]
    for s in sites: print(s.module, s.gemm, s.reason)
    assert False


def test_trl(tmp_path: Path) -> None:
    """SFTTrainer, on texts that are tokens already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    import datasets

    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    data = datasets.Dataset.from_list([{"input_ids": text["input_ids"].tolist()} for text in texts()])
    said: list[str] = []
    settings = arguments(tmp_path, max_steps=2, save_strategy="no", per_device_train_batch_size=4)
    config = SFTConfig(**{name: getattr(settings, name) for name in ("output_dir", "max_steps", "report_to")}, use_cpu=True,
        save_strategy="no", per_device_train_batch_size=4, logging_steps=1, learning_rate=1e-2, bf16=False, gradient_checkpointing=False)
    model = gpt2()
    model.compile(backend="metis", dynamic=True)
    trainer = SFTTrainer(
        model, config, train_dataset=data, processing_class=tokenizer, callbacks=[MetisCallback("nvfp4", say=said.append)]
    )
    trainer.train()
    print(said, trainer.state.log_history)
    assert False
