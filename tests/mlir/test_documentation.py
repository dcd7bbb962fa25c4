"""docs/export.md: its code and its command run, and the MLIR that it shows is what comes out."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from metis_compile.cli import app

pytest.importorskip("torch_mlir", reason="the export is made by torch-mlir, whose packages are for Linux")
TEXT = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def words(text: str) -> str:
    return " ".join(text.split())


def test_what_it_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "model", raising=False)
    model, use = (text for language, text in BLOCKS if language == "python")
    Path("model.py").write_text(model)
    (command,) = (text for language, text in BLOCKS if language == "console")
    result = CliRunner().invoke(app, shlex.split(command.removeprefix("$ metis ")))
    assert result.exit_code == 0, result.output
    written = {path.name: path.read_text() for path in Path("runs/export").iterdir()}
    assert set(written) == {"forward.mlir", "backward.mlir", "signature.json"}
    (shown,) = (text for language, text in BLOCKS if language == "mlir")
    for line in re.split(r"\n(?=%)", shown.strip()):
        call = words(line.partition("=")[2])
        assert re.sub(r"%\w+", "%", call) in re.sub(r"%\w+", "%", words(written["forward.mlir"]))
    namespace: dict[str, Any] = {}
    exec(compile(use, "export.md", "exec"), namespace)
    assert namespace["exported"].forward == written["forward.mlir"]
    monkeypatch.delitem(sys.modules, "model")
