"""Who shares a quantization, and why an activation is saved."""

from __future__ import annotations

import pytest
import torch
from tiny import NEAREST_POLICY, Attention
from torch import nn

from metis_compile import Explanation, Policy, explain


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.down = Attention(), nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.attention(x)))


X = torch.randn(2, 16, 32)


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return explain(Model(), X, policy=NEAREST_POLICY)


def test_who_shares_a_quantization(explanation: Explanation) -> None:
    flow = explanation.dataflow().of("attention.q")
    assert flow.shared_by == ("attention.k fprop", "attention.v fprop")
    assert explanation.dataflow().of("attention.q", "fprop", "weight").shared_by == ()
    assert explanation.dataflow("attention.q").of("attention.q").shared_by == flow.shared_by, "outside of the part too"


def test_why_an_activation_is_saved(explanation: Explanation) -> None:
    flow = explanation.dataflow().of("attention.q")
    assert flow.saved_bytes == 32 * 32 * 4.5 / 8 + 4
    assert flow.saved_because.startswith(
        "attention.v wgrad, attention.k wgrad and attention.q wgrad read it as nvfp4 1x16"
    )
    assert "freeze attention.v.weight, attention.k.weight and attention.q.weight" in flow.to_drop
    assert "checkpoint" in flow.to_drop
    weight = explanation.dataflow().of("attention.q", "fprop", "weight")
    assert (weight.saved_bytes, weight.saved_because, weight.to_drop) == (
        0,
        "not saved: a parameter is kept anyway",
        "",
    )
    gradient = explanation.dataflow().of("attention.out", "dgrad", "gradient")
    assert gradient.saved_because == "not saved: backward makes it"


def test_what_it_says_would_drop_it_does() -> None:
    model = Model()
    for layer in (model.attention.q, model.attention.k, model.attention.v):
        layer.requires_grad_(False)
    frozen = explain(model, X, policy=NEAREST_POLICY)
    assert frozen.dataflow().of("attention.q").saved_because == "not saved: no product of backward reads it"


def test_what_is_left_high_is_saved_as_it_is() -> None:
    flow = explain(Model(), X.clone().requires_grad_(), policy="high").dataflow().of("down")
    assert flow.saved_bytes == 0 or "in high precision" in flow.saved_because
    policy = Policy.from_toml('extends = "nvfp4"\n[[rule]]\ngemm = "wgrad"\nrecipe = "high"\n', name="forward.toml")
    kept = explain(Model(), X, policy=policy).dataflow().of("attention.out")
    assert "attention.out wgrad reads it in high precision (high: forward.toml rule 1" in kept.saved_because
    assert kept.to_drop.startswith("quantize it in attention.out wgrad")


def test_as_mermaid(explanation: Explanation) -> None:
    lines = str(explanation.dataflow("attention")).splitlines()
    assert lines[0] == "flowchart LR"
    assert '["attention.q fprop"]' in lines[1]
    saved = [line.split("[", 1)[0].strip() for line in lines if ", saved 580 bytes" in line]
    readers = [sum(line.strip().startswith(f"{name} -->") for line in lines) for name in saved]
    assert sorted(readers) == [1, 3], "the input of out, and that of q, k and v"
    assert not any("down" in line for line in lines)


def test_a_module_or_operand_that_is_not_there(explanation: Explanation) -> None:
    with pytest.raises(LookupError, match="no product in 'atention'; did you mean 'attention'"):
        explanation.dataflow("atention")
    with pytest.raises(LookupError, match=r"did you mean 'attention\.q fprop'"):
        explanation.dataflow().of("attention.qq")
    with pytest.raises(LookupError, match="has the operands activation, weight, got 'gradient'"):
        explanation.dataflow().of("attention.q", "fprop", "gradient")
