"""Real libraries around real models: peft, DTensor, FSDP1 with kept bases, transformers under Accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
import transformers
from graphs import capture_graphs, eager_backend, sites_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Replicate, distribute_module, distribute_tensor
from wrapped import TOKENS, Block, done, make, one_process, sites_of_run

import metis_compile

IDS = torch.arange(16).view(2, 8)


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return transformers.LlamaForCausalLM(config)


def run_llama(model: Any, policy: str) -> list[Any]:
    compiled = torch.compile(model, backend=eager_backend(policy))
    return sites_of_run(lambda: compiled(input_ids=IDS).logits)


def test_llama_under_accelerates_bf16_is_the_plain_one() -> None:
    plain = done(run_llama(llama(), "nvidia"))
    wrapped = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(llama())
    assert done(run_llama(wrapped, "nvidia")) == plain
    assert sum(rewritten for rewritten, *_ in plain.values()) == 3 * 7 * 3  # the last of four blocks is high


def test_lora_leaves_the_models_names_and_its_factors_high() -> None:
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
    model = peft.get_peft_model(llama(), config)
    found = done(run_llama(model, "nvidia"))
    plain = done(run_llama(llama(), "nvidia"))
    assert {module for module, _ in plain} <= {module for module, _ in found}
    assert {key: found[key] for key in found if key in plain} == {key: plain[key] for key in found if key in plain}
    more = {module for module, _ in found} - {module for module, _ in plain}
    assert "model.layers.3.self_attn.q_proj.lora_A.default" in more
    assert all(found[key][:2] == (False, "adapter") for key in found if key[0] in more)


def test_saved_modules_of_peft_have_the_models_names() -> None:
    config = peft.LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    found = done(run_llama(peft.get_peft_model(llama(), config), "nvfp4"))
    assert found["lm_head", "fprop"][:2] == (False, "head")


class Products(nn.Module):
    """Parameters in a linear, in a matmul and in an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.a, self.b = (nn.Parameter(torch.randn(32, 32)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ti,io->to", self.linear(x) @ self.a, self.b)


def test_dtensors_parameters_are_parameters(tmp_path: Path) -> None:
    """AOTAutograd passes what is inside of a DTensor: it is at its DTensor's place among the inputs."""

    def rows(model: nn.Module, x: Tensor) -> list[Any]:
        return [
            (s.gemm, s.module, s.weights, s.has_weight, [o.role for o in s.operands])
            for s in sites_of(capture_graphs(model, x, policy="mxfp8"))
        ]

    x = torch.randn(16, 32, requires_grad=True)
    plain = rows(Products(), x)
    with one_process(tmp_path):
        mesh = init_device_mesh("cpu", (1,))
        given: Any = distribute_tensor(x.detach(), mesh, [Replicate()]).requires_grad_()
        model = distribute_module(Products(), mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        found = rows(model, given)
    assert found == plain
    assert len(found) == 9
    assert all(has_weight for *_, has_weight, _ in found)


def test_each_block_of_fsdp1_keeps_its_own_bases(tmp_path: Path) -> None:
    torch.compiler.reset()
    with one_process(tmp_path):
        wrap = ModuleWrapPolicy({Block})
        model = FullyShardedDataParallel(
            make(), auto_wrap_policy=wrap, use_orig_params=True, device_id=torch.device("cpu")
        )
        run = torch.compile(model, backend=eager_backend("best"))
        for _ in range(2):
            run(TOKENS).sum().backward()
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    kept = [metis_compile.state_dict(block) for block in blocks]
    assert kept[0].keys() == kept[1].keys() == kept[2].keys() != set()
    assert metis_compile.state_dict(model).keys() >= {f"layers.{i}.{site}" for i in range(3) for site in kept[0]}
    first, second, third = (next(iter(found.values()))["activation"] for found in kept)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_explain_under_peft_names_what_is_compiled() -> None:
    config = peft.LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    explanation = metis_compile.explain(peft.get_peft_model(llama(), config), input_ids=IDS, policy="nvidia")
    site = explanation.site("model.layers.0.self_attn.q_proj.lora_A.default")
    assert site.reason == "high: base.toml rule 4 (kind=adapter); adapter: by its name"
    with pytest.raises(LookupError):
        explanation.site("base_model.model.model.layers.0.self_attn.q_proj.base_layer")
