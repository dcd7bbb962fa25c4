"""GPT-2, Llama, BERT and Mixtral of `transformers`, unmodified, small and random: they train, and nothing is missed.

In NVFP4, and Llama also with splits that are kept across steps.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import metis_compile
from metis_compile.inspection.explain import Explanation

VOCABULARY, TOKENS, STEPS = 64, 16, 15
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2(attention: str) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=TOKENS, n_embd=32, n_layer=2, n_head=2, attn_implementation=attention
    )
    return transformers.GPT2LMHeadModel(config)


def llama(attention: str) -> nn.Module:
    config = transformers.LlamaConfig(
        **SIZES, intermediate_size=64, num_key_value_heads=1, attn_implementation=attention
    )
    return transformers.LlamaForCausalLM(config)


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(**SIZES, intermediate_size=64, attn_implementation=attention)
    return transformers.BertForMaskedLM(config)


def mixtral(attention: str) -> nn.Module:
    config = transformers.MixtralConfig(
        **SIZES, intermediate_size=48, num_key_value_heads=1, num_local_experts=4, attn_implementation=attention
    )
    return transformers.MixtralForCausalLM(config)


MODELS: dict[str, Callable[[str], nn.Module]] = {"gpt2": gpt2, "llama": llama, "bert": bert, "mixtral": mixtral}
HEADS = dict.fromkeys(MODELS, "lm_head") | {"bert": "cls.predictions.decoder"}  # high by the preset
LAYERS = {"gpt2": 4 * 2, "llama": 7 * 2, "bert": 6 * 2 + 1, "mixtral": 4 * 2}  # beside experts


def make(name: str, attention: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = MODELS[name](attention)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the two curves would draw different masks
    return model.train(), torch.randint(0, VOCABULARY, (4, TOKENS))


@dataclass(frozen=True)
class Trained:
    name: str
    full: list[float]
    metis: list[float]


TRAINED = [
    ("gpt2", "sdpa", "nvfp4"),
    ("llama", "sdpa", "nvfp4"),
    ("llama", "sdpa", "metis"),
    ("llama", "sdpa", "best"),
    ("bert", "eager", "nvfp4"),
    ("mixtral", "sdpa", "best"),
]


# Conv1D, splits that are kept across steps, and experts; attention by both ways
NOT_LONG = [
    ("gpt2", "sdpa", "nvfp4"),
    ("llama", "sdpa", "metis"),
    ("mixtral", "sdpa", "best"),
    *[("gpt2", "sdpa"), ("llama", "eager"), ("bert", "sdpa"), ("mixtral", "eager")],
]


def cases(all_of_them: Iterable[tuple[str, ...]]) -> list[Any]:
    """For the params of a fixture."""
    return [
        pytest.param(case, id="-".join(case), marks=() if case in NOT_LONG else pytest.mark.long)
        for case in all_of_them
    ]


@pytest.fixture(scope="module", params=cases(TRAINED))
def trained(request: pytest.FixtureRequest) -> Trained:
    """Each model trained twice from one seed, in full precision and compiled; one compile for all tests of it."""
    name, attention, policy = request.param
    model, tokens = make(name, attention)
    plain = copy.deepcopy(model)
    run = torch.compile(model, backend="metis", fullgraph=True, options={"policy": policy, "verify": True})
    return Trained(name, full=losses(plain, plain, tokens), metis=losses(run, model, tokens))


def losses(run: Callable[..., object], model: nn.Module, tokens: Tensor) -> list[float]:
    """Of each step on one batch, which a model learns by heart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    for _ in range(STEPS):
        logits = run(input_ids=tokens).logits  # type: ignore[attr-defined]
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def test_loss_falls(trained: Trained) -> None:
    assert trained.metis[-1] < 0.85 * trained.metis[0]


def test_curve_stays_near_full_precision(trained: Trained) -> None:
    fall = trained.full[0] - trained.full[-1]
    assert max(abs(a - b) for a, b in zip(trained.metis, trained.full, strict=True)) < 0.1 * fall


def test_it_was_quantized(trained: Trained) -> None:
    assert trained.metis[0] != pytest.approx(trained.full[0], rel=1e-6)


@pytest.fixture(scope="module", params=cases(itertools.product(MODELS, ("sdpa", "eager"))))
def explained(request: pytest.FixtureRequest) -> tuple[str, str, nn.Module, Explanation]:
    name, attention = request.param
    model, tokens = make(name, attention)
    return name, attention, model, metis_compile.explain(model, input_ids=tokens, policy="nvfp4")


def test_every_linear_is_three_sites(explained: tuple[str, str, nn.Module, Explanation]) -> None:
    name, _, model, explanation = explained
    linears = {n for n, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    gemms = defaultdict(list)
    for site in explanation.sites:
        gemms[site.module].append((site.gemm, site.reason is None))
    for linear in linears:
        rewritten = linear != HEADS[name]
        assert sorted(gemms[linear]) == [(g, rewritten) for g in ("dgrad", "fprop", "wgrad")], linear
    assert len(linears) == LAYERS[name] + 1
    assert explanation.graphs == 1


def test_experts_are_rewritten() -> None:
    """In each of two layers, gate and up as one, and down; by torch's operator in bfloat16, else by transformers'."""
    for dtype in (torch.float32, torch.bfloat16):
        model, tokens = make("mixtral", "sdpa")
        explanation = metis_compile.explain(model.to(dtype), input_ids=tokens, policy="best")
        experts = [s for s in explanation.sites if s.module.endswith("mlp.experts")]
        assert sorted(s.gemm for s in experts) == sorted(["fprop", "dgrad", "wgrad"] * 4)
        assert {s.reason for s in experts} == {None}


def test_only_heads_and_attention_stay_high(explained: tuple[str, str, nn.Module, Explanation]) -> None:
    name, attention, _, explanation = explained
    high = (HEADS[name], "mlp.gate")  # of a mixture, which chooses the experts
    left = [s for s in explanation.sites if s.reason is not None and not s.module.endswith(high)]
    assert all("has_weight=false" in str(s.reason) for s in left)
    # two products in each of two layers, and the two dgrads of each; one fused operator under sdpa
    assert len(left) == (12 if attention == "eager" else 0)
