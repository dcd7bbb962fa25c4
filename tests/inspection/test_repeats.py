"""Repeated blocks are looked at once, and what is found is what looking at all of them finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import MLP
from torch import Tensor, nn

import metis_compile
from metis_compile import Policy
from metis_compile.inspection import dry_run
from metis_compile.inspection.repeats import Cut, whole


class Block(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, width), nn.Linear(width, 32)
        self.register_buffer("mask", torch.ones(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(torch.sigmoid(q @ k.mT * self.mask) @ v)
        return x + self.down(torch.relu(self.up(x)))


class Deep(nn.Module):
    """Blocks between an embedding and a head; may return what each block computes, or add up what they compute."""

    def __init__(self, blocks: list[Block], mode: str = "") -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(16, 32), nn.Linear(32, 16)
        self.layers, self.mode = nn.ModuleList(blocks), mode

    def forward(self, tokens: Tensor) -> Any:
        x = self.embedding(tokens)
        states = []
        for block in self.layers:
            x = block(x)
            states.append(x)
        if self.mode == "sum":
            x = torch.stack(states).sum(0)
        return (self.head(x), states) if self.mode == "return" else self.head(x)


DEPTH = Policy.from_toml(
    """
    extends = "nvfp4"
    [[rule]]
    module = ["layers.1.up", "layers.{3,4}.*"]
    recipe = "high"
    [[rule]]
    blocks = ["first 1", "last 50%"]
    operand = "gradient"
    recipe = "mxfp8"
    """,
    name="depth.toml",
)
TOKENS = torch.zeros(2, 16, dtype=torch.int64)


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[Cut]:
    """What was cut, filled in by every explanation."""
    found: list[Cut] = []
    cut_repeats = dry_run.cut_repeats
    monkeypatch.setattr(dry_run, "cut_repeats", lambda *a: found.append(cut_repeats(*a)) or found[-1])
    return found


def comparable(explanation: metis_compile.Explanation) -> tuple[Any, ...]:
    """All but the names of saved tensors, which are the graph's own."""
    sites = [replace(s, saved=(), saved_each={}, quantized={}) for s in explanation.sites]
    counts = [(len(s.saved), sorted(s.saved_each.values()), set(s.quantized)) for s in explanation.sites]
    return sites, counts, explanation.unused_rules, explanation.saved_bytes


@pytest.mark.parametrize(
    ("model", "policy", "kept"),
    [
        (lambda: Deep([Block() for _ in range(9)]), "nvidia", ["layers.3"]),
        (lambda: Deep([Block() for _ in range(6)]), "best", ["layers.2"]),
        (lambda: Deep([Block() for _ in range(10)]), DEPTH, ["layers.7"]),
        (lambda: Deep([Block() for _ in range(5)], "return"), "nvfp4", ["layers.2"]),
        (lambda: Deep([Block(64 if i == 5 else 48) for i in range(10)]), "nvfp4", ["layers.2", "layers.7"]),
    ],
    ids=["nvidia", "best", "depth", "returned", "another width"],
)
def test_equals_looking_at_all(
    model: Any, policy: Any, kept: list[str], cuts: list[Cut], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model()
    once = metis_compile.explain(made, TOKENS, policy=policy)
    assert [repeat.kept for repeat in cuts[0].repeats] == kept
    monkeypatch.setattr(dry_run, "cut_repeats", lambda gm, alike: whole(gm))
    assert comparable(once) == comparable(metis_compile.explain(made, TOKENS, policy=policy))


def test_blocks_that_others_read_are_all_looked_at(cuts: list[Cut]) -> None:
    found = metis_compile.explain(Deep([Block() for _ in range(5)], "sum"), TOKENS, policy="nvfp4")
    assert cuts[0].repeats == ()
    assert {s.module for s in found.sites if s.module.endswith("up")} == {f"layers.{i}.up" for i in range(5)}


def test_three_blocks_and_a_shared_one_are_all_looked_at(cuts: list[Cut]) -> None:
    metis_compile.explain(Deep([Block() for _ in range(3)]), TOKENS, policy="nvfp4")
    shared = MLP()
    metis_compile.explain(nn.Sequential(*[shared] * 5), torch.randn(16, 32), policy="nvfp4")
    assert all(cut.repeats == () for cut in cuts)


def test_a_deep_model_prints_on_a_screen() -> None:
    explanation = metis_compile.explain(Deep([Block() for _ in range(12)]), TOKENS, policy="nvidia")
    text = str(explanation)
    assert "layers.{0..9}.up" in text
    assert "layers.{10,11}.up" in text
    assert len(text.splitlines()) < 30
    full = metis_compile.explain(Deep([Block() for _ in range(4)]), TOKENS, policy="nvidia", full=True)
    assert len(str(full).splitlines()) > len(full.sites)
