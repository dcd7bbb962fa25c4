"""The scripts that a user copies run, with tiny settings and without code generation."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.usefixtures("eagerly")


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    torch.compiler.reset()
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_huggingface_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And once more, with more steps: it goes on from its checkpoint."""
    tiny = ("--width", "32", "--layers", "1", "--output", str(tmp_path))
    run(monkeypatch, "huggingface_trainer.py", "--steps", "1", *tiny)
    first = capsys.readouterr().out
    assert "metis: policy nvfp4.toml: 21 of 24 products rewritten in 1 graph" in first
    run(monkeypatch, "huggingface_trainer.py", "--steps", "2", *tiny)
    assert (tmp_path / "checkpoint-2" / "metis_state.pt").exists()


def test_accelerate_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "accelerate_loop.py", "--steps", "3", "--width", "32")
    assert "step 3  loss 0." in capsys.readouterr().out
