import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import metis_compile
from metis_compile.cli import app

SOURCE = """
import torch
from torch import nn

def plain():
    return nn.Linear(32, 16), (torch.ones(32, 32),)

def listed():
    return nn.Linear(32, 16), [torch.ones(32, 32)]

def single():
    return nn.Linear(32, 16), torch.ones(32, 32)

def with_keywords():
    return nn.Linear(32, 16), (), {"input": torch.ones(32, 32)}

def wrong():
    return nn.Linear(32, 16)

def wrong_keywords():
    return nn.Linear(32, 16), (), 3

def needy(width, *, depth=2):
    return nn.Linear(width, 16), torch.ones(32, width)

def failing():
    raise RuntimeError("in the user's own code")
"""


class Explained:
    """Stands in for the explanation: what ``explain`` was called with."""

    def __init__(self, model: torch.nn.Module, *args: Any, policy: Any, full: bool, device: Any, **kwargs: Any) -> None:
        self.model, self.args, self.policy, self.full, self.kwargs = model, args, policy, full, kwargs
        self.device = device

    def __str__(self) -> str:
        shapes = [tuple(x.shape) for x in (*self.args, *self.kwargs.values())]
        return f"{type(self.model).__name__} {shapes} {sorted(self.kwargs)}{' in full' if self.full else ''}" + (
            f" on {self.device.name}" if self.device else ""
        )

    def to_dict(self) -> dict[str, str]:
        return {"policy": Path(self.policy.name).stem}


@pytest.fixture
def metis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``metis explain`` in a folder with ``explained_model.py``, explaining replaced by :class:`Explained`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    monkeypatch.delitem(sys.modules, "explained_model", raising=False)
    Path("explained_model.py").write_text(SOURCE)
    Path("broken_import.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.setitem(vars(metis_compile), "explain", Explained)
    return lambda *arguments: CliRunner().invoke(app, ["explain", *arguments])


@pytest.mark.parametrize("module", ["explained_model", "explained_model.py"])
@pytest.mark.parametrize("function", ["plain", "listed", "single"])
def test_a_module_or_a_file_with_positional_inputs(metis: Any, module: str, function: str) -> None:
    result = metis(f"{module}:{function}")
    assert result.exit_code == 0, result.output
    assert result.stdout == "Linear [(32, 32)] []\n"


def test_keyword_inputs(metis: Any) -> None:
    assert metis("explained_model:with_keywords").stdout == "Linear [(32, 32)] ['input']\n"


def test_a_row_for_each_product(metis: Any) -> None:
    assert metis("explained_model:plain", "--full").stdout == "Linear [(32, 32)] [] in full\n"


def test_json_and_policy(metis: Any) -> None:
    assert json.loads(metis("explained_model:plain", "--json").stdout) == {"policy": "best"}
    assert json.loads(metis("explained_model:plain", "--policy", "mxfp8", "--json").stdout) == {"policy": "mxfp8"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explained_model"], "a target is module:function or file.py:function, got 'explained_model'"),
        (["explained_model:"], "a target is module:function"),
        (["nowhere.py:plain"], "there is no file nowhere.py"),
        (["nowhere.at.all:plain"], "there is no module 'nowhere'"),
        (["explained_model:plaim"], "explained_model has no function 'plaim'; did you mean 'plain'?"),
        (["explained_model:wrong"], "must return (model, args) or (model, args, kwargs), got Linear"),
        (["explained_model:wrong_keywords"], "got a tuple of 3: Linear, tuple, int"),
        (["explained_model:plain", "--policy", "nvfp5"], "nvfp4"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(metis: Any, arguments: list[str], message: str) -> None:
    result = metis(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("metis: ")
    assert message in line


def test_a_fault_in_the_users_code_keeps_its_traceback(metis: Any) -> None:
    assert isinstance(metis("explained_model:failing").exception, RuntimeError)
    assert isinstance(metis("broken_import:plain").exception, ModuleNotFoundError)


def test_a_function_that_needs_arguments_is_one_line(metis: Callable[..., Result]) -> None:
    result = metis("explained_model:needy")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "metis: explained_model:needy is called without arguments, and takes (width, *, depth=2): "
        "missing a required argument: 'width'"
    ]


def test_a_device(metis: Any, tmp_path: Path) -> None:
    assert metis("explained_model:plain", "--device", "B200").stdout == "Linear [(32, 32)] [] on b200\n"
    Path("mine.toml").write_text("bandwidth = 1e11\n[rates]\nfloat32 = 1e12\nbfloat16 = 2e12\n")
    assert metis("explained_model:plain", "--device", "mine.toml").stdout == "Linear [(32, 32)] [] on mine\n"


def test_an_unknown_device_is_one_line(metis: Any) -> None:
    result = metis("explained_model:plain", "--device", "b20")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "did you mean 'b200'?" in result.stderr
