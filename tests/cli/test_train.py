import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from metis_compile.cli import app
from metis_compile.html_report import ReportError
from metis_compile.train import loop
from metis_compile.train.variant import Variant

SIZES = {"steps": 5, "width": 16, "layers": 1, "heads": 2, "context": 16, "batch": 2}
TINY = [*(f"--{name}={value}" for name, value in SIZES.items()), "--device=cpu"]
Metis = Callable[..., Result]


@pytest.fixture
def metis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Metis:
    """Run ``metis train`` on a short text, in a folder of its own, with torch.compile left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", lambda model, **how: model)
    Path("text.txt").write_text("all work and no play makes jack a dull boy. " * 200)

    def call(*arguments: str, tiny: bool = True) -> Result:
        settings = [*TINY, "--text", "text.txt"] if tiny else []
        return CliRunner().invoke(app, ["train", *settings, *arguments])

    return call


def one_line(result: Result) -> str:
    """The only line of a user's error."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("metis: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    return lines[0]


def test_the_table_and_the_files(metis: Metis) -> None:
    result = metis()
    assert result.exit_code == 0, result.output
    for row in ("train loss", "validation loss", "step time", "saved for backward", "first step (compiles)"):
        assert row in result.stdout
    assert next(line for line in result.stdout.splitlines() if "first step" in line).split()[-2] == "-"
    assert "best" in result.stdout
    assert ".toml" not in result.stdout
    for name in ("loss.png", "report.json", "checkpoint.pt"):
        assert f"runs/train/{name}" in result.stdout
        assert Path("runs/train", name).is_file()


def test_json_is_all_that_stdout_gets(metis: Metis) -> None:
    numbers = json.loads(metis("--json", "--policy", "mxfp8", "--average", "2").stdout)
    assert set(numbers) == {
        "settings",
        "device",
        "text",
        "parameters",
        "averaged_steps",
        "full_precision",
        "policy",
        "train_gap_percent",
        "validation_gap_percent",
        "step_time_ratio",
        "saved_bytes_ratio",
        "policy_files",
        "files",
        "versions",
        "machine",
    }
    assert numbers["settings"]["policy"] == numbers["policy"]["label"] == "mxfp8"
    assert numbers["settings"]["dtype"] == "float32"
    assert numbers["averaged_steps"] == 2
    assert numbers["policy"]["train_loss"] == pytest.approx(sum(numbers["policy"]["losses"][-2:]) / 2)
    assert set(numbers["policy"]) == set(numbers["full_precision"])
    assert numbers["full_precision"]["backend"] == "inductor"
    assert numbers["policy"]["backend"] == "metis"
    assert len(numbers["policy"]["losses"]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "nvfp5"], "nvfp4"),
        (["--policy", "nowhere.toml"], "nowhere.toml"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--heads", "3"], "width must be a multiple of heads"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--dtype", "fp64"], "dtype must be float32 or bfloat16, got 'fp64'"),
        (["--text", "nowhere.txt"], "cannot read the text nowhere.txt"),
        (["--context", "5000"], "bytes for validation, a context of 5000 needs more"),
        (["--out", "text.txt"], "cannot make the folder text.txt"),
        (["--html", "."], "cannot write .: it is a folder"),
        (["--html", "text.txt/page.html"], "cannot make the folder text.txt"),
        (["--learning-rate", "inf"], "learning rate must be a finite number above 0, got inf"),
        (["--learning-rate", "nan"], "learning rate must be a finite number above 0, got nan"),
        (["--checkpoint-every", "0"], "checkpoint-every must be at least 1, got 0"),
        (["--resume"], "leave out --resume"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(metis: Metis, arguments: list[str], message: str) -> None:
    assert message in one_line(metis(*arguments))


def test_a_page_that_can_not_be_written_is_found_at_the_start(metis: Metis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_Run", None)  # nothing is trained
    assert "it is a folder; name a file in it" in one_line(metis("--html", "."))


def test_a_page_that_can_not_be_written_at_the_end_loses_nothing_else(
    metis: Metis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise ReportError("cannot write page.html: No space left on device")

    monkeypatch.setattr(loop, "explanations", lambda *given: [("best", None)])
    monkeypatch.setattr(loop, "spectra", lambda *given: [])
    monkeypatch.setattr(loop, "page", lambda *given, **more: None)
    monkeypatch.setattr(loop, "write", full)
    result = metis("--html", "page.html", "--json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)["policy"]["losses"]) == 5
    assert "metis: cannot write page.html: No space left on device" in result.stderr.splitlines()


def test_without_matplotlib_nothing_is_trained(metis: Metis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert one_line(metis()) == "metis: plots need matplotlib: pip install 'metis-compile[train]'"
    assert not Path("runs").exists()


def test_a_folder_that_takes_nothing_is_found_at_the_start(metis: Metis, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*given: Any, **how: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    monkeypatch.setattr(loop, "_Run", None)  # nothing is trained
    assert one_line(metis("--out", "there")) == "metis: cannot write in the folder there: Read-only file system"


def test_a_disk_that_fills_up_loses_nothing_but_the_file(metis: Metis, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    result = metis("--json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)["policy"]["losses"]) == 5
    problem = f"metis: cannot write {Path('runs/train/checkpoint.pt')}: No space left on device"
    assert problem in result.stderr.splitlines()
    assert "Traceback" not in result.stderr


CODE = """
[recipe.mine]
weight = "high"
gradient = "high"
activation = { format = "nvfp4", split = "their_module:Split" }
"""


def test_the_policy_that_a_checkpoint_names_imports_nothing(metis: Metis) -> None:
    Path("run.toml").write_text("")
    assert metis("--policy", "run.toml").exit_code == 0
    Path("run.toml").write_text(CODE)
    said = one_line(metis("--resume", tiny=False))
    assert "run.toml:5: recipe mine, activation, split:" in said
    assert "names code" in said
    given = one_line(metis("--resume", "--policy", "run.toml", tiny=False))
    assert "No module named 'their_module'" in given


def test_a_mistake_in_a_policy_file_is_one_line(metis: Metis) -> None:
    Path("bad.toml").write_text('[[rule]]\nrecipe = "nvfp44"\n')
    assert "bad.toml" in one_line(metis("--policy", "bad.toml"))


class Interrupting(torch.nn.Module):
    """A compiled model during whose third step Ctrl-C is pressed."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 4:  # the second forward counts saved bytes
            os.kill(os.getpid(), signal.SIGINT)
        return self.model(tokens)


def test_ctrl_c_says_the_command_that_goes_on_and_it_does(metis: Metis, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(model: torch.nn.Module, *, backend: str, options: Any) -> torch.nn.Module:
        return Interrupting(model) if backend == "metis" else model

    whole = json.loads(metis("--json", "--out", "whole").stdout)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", compile)
        patch.setattr("sys.argv", [".venv/bin/metis"])
        result = metis("--out", "a folder")
    assert result.exit_code == 130
    assert "step 3/5 is saved" in result.stderr
    command = shlex.split(result.stderr.splitlines()[-1])
    assert command == [".venv/bin/metis", "train", "--resume", "--out", "a folder"]
    resumed = metis(*command[2:], "--json", tiny=False)
    assert resumed.exit_code == 0, resumed.output
    numbers = json.loads(resumed.stdout)
    assert numbers["policy"]["losses"] == whole["policy"]["losses"]
    assert numbers["settings"] == whole["settings"]


def test_the_command_names_the_interpreter_when_run_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from metis_compile.cli.train import how_to_go_on

    stopped = loop.Interrupted(signal=2, step=3, saved=3)
    monkeypatch.setattr("sys.argv", ["/x/metis_compile/cli/__main__.py", "train"])
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")
    text = how_to_go_on(stopped, 5, Path("runs/train"))
    assert text.endswith("/usr/bin/python3 -m metis_compile.cli train --resume --out runs/train")
    monkeypatch.setattr("sys.argv", [".venv/bin/metis", "train"])
    assert how_to_go_on(stopped, 5, Path("o")).endswith("\n  .venv/bin/metis train --resume --out o")
    nothing = loop.Interrupted(signal=2, step=0, saved=None)
    assert "the same command starts again" in how_to_go_on(nothing, 5, Path("o"))


def test_resuming_with_another_setting_is_an_error(metis: Metis) -> None:
    assert metis().exit_code == 0
    assert "is of a run with width 16 and not 32" in one_line(metis("--resume", "--width", "32", tiny=False))


def test_starting_anew_over_a_checkpoint_says_so(metis: Metis) -> None:
    assert "will be replaced" not in metis().stderr
    assert "will be replaced" in metis().stderr


def test_a_fault_of_ours_keeps_its_traceback(metis: Metis, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(policy: str, *, trust: bool) -> Variant:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop, "policy_variant", broken)
    result = metis()
    assert isinstance(result.exception, RuntimeError)


def test_the_help_names_the_defaults_that_settings_have() -> None:
    import re

    from metis_compile.cli.train import train
    from metis_compile.train.settings import Settings

    shown = {}
    for name, annotation in train.__annotations__.items():
        default = annotation.__metadata__[0].show_default if hasattr(annotation, "__metadata__") else None
        if isinstance(default, str) and re.fullmatch(r"[\w.]+", default):
            shown[name] = default
    assert shown == {name: str(getattr(Settings(), name)) for name in shown}
    assert {"policy", "steps", "width", "batch", "learning_rate"} <= set(shown)
