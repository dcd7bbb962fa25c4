"""The README's code runs, its policy loads, and what it says is printed is what is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import metis_compile

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text())


def test_code_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # the width of what explain prints
    namespace: dict[str, Any] = {"torch": torch, "model": torch.nn.Linear(16, 16)}  # of the first screen
    shown = []
    for language, text in blocks():
        if language == "toml":
            (tmp_path / "run.toml").write_text(text)
            metis_compile.Policy.load("run.toml")
        elif language == "python":
            exec(compile(text, "README.md", "exec"), namespace)
            shown.append(capsys.readouterr().out)
    printed = "".join(shown)
    (listing,) = [text for language, text in blocks() if language == "text" and "_quantized = quantize(" in text]
    assert listing in printed
    (table,) = [text for language, text in blocks() if language == "text" and "m x n x k" in text]
    for line in table.splitlines():
        assert any(line.split() == row.split() for row in printed.splitlines()), line


def test_the_presets_are_all_described() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"| `{name}` |" in text for name in metis_compile.presets())


def test_what_it_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
