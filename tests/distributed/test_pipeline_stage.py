"""A pipeline's stage knows its own blocks alone."""

from __future__ import annotations

import torch
from parallel import WIDTH, Model
from torch import nn

import metis_compile
from metis_compile import Policy

LAST = Policy.from_toml('extends = "mxfp8"\n[[rule]]\nblocks = "last 1"\nrecipe = "high"\n', name="last.toml")


def test_the_last_block_is_that_of_the_stage() -> None:
    stage = Model()
    stage.norm = nn.Identity()  # type: ignore[assignment]
    explanation = metis_compile.explain(stage, torch.randn(32, WIDTH), policy=LAST)
    assert {s.module for s in explanation.sites if s.reason is not None} == {"layers.1.up", "layers.1.down"}
