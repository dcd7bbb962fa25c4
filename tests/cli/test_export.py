import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import metis_compile
from metis_compile import ExportError
from metis_compile.cli import app

SOURCE = """
import torch
from torch import nn

def plain():
    return nn.Linear(32, 16), (torch.ones(32, 32),)
"""


class Exported:
    """Stands in for the export: what ``export_mlir`` was called with."""

    def __init__(self, model: torch.nn.Module, *args: Any, policy: Any, dialect: str, **kwargs: Any) -> None:
        if dialect == "tosa":
            raise ExportError(f"dialect must be another,\ngot {dialect!r}")
        self.text = f"{type(model).__name__} {[tuple(x.shape) for x in args]} {policy.name} {dialect}"

    def save(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True)
        (folder / "forward.mlir").write_text(self.text)
        return [folder / "forward.mlir"]

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, str]:
        return {"text": self.text}


@pytest.fixture
def metis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``metis export`` in a folder with ``exported_model.py``, exporting replaced by :class:`Exported`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    Path("exported_model.py").write_text(SOURCE)
    monkeypatch.setitem(vars(metis_compile), "export_mlir", Exported)
    return lambda *arguments: CliRunner().invoke(app, ["export", *arguments])


def test_files_are_written_and_named(metis: Any) -> None:
    result = metis("exported_model.py:plain")
    assert result.exit_code == 0, result.output
    text = "Linear [(32, 32)] best.toml linalg"
    assert result.stdout == f"{text}\nforward: runs/export/forward.mlir\n"
    assert Path("runs/export/forward.mlir").read_text() == text


def test_options(metis: Any) -> None:
    result = metis("exported_model.py:plain", "--policy", "mxfp8", "--dialect", "torch", "--out", "there", "--json")
    assert json.loads(result.stdout) == {
        "text": "Linear [(32, 32)] mxfp8.toml torch",
        "files": ["there/forward.mlir"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exported_model.py:plaim"], "has no function 'plaim'; did you mean 'plain'?"),
        (["exported_model.py:plain", "--policy", "nvfp5"], "nvfp4"),
        (["exported_model.py:plain", "--dialect", "tosa"], "dialect must be another, got 'tosa'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(metis: Any, arguments: list[str], message: str) -> None:
    result = metis(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("metis: ")
    assert message in line
    assert not Path("runs").exists()


def test_a_folder_that_cannot_be_made_is_found_before_the_export(metis: Any) -> None:
    Path("file").write_text("")
    result = metis("exported_model.py:plain", "--out", "file/there")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["metis: cannot make the folder file/there: Not a directory"]
