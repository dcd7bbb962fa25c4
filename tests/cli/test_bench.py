"""``metis bench`` from the command line, with a stand-in for the processes that measure."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from metis_compile.bench import runner
from metis_compile.cli import app
from metis_compile.measure.schedule import Failure, Job

TINY = ["--width=16", "--layers=1", "--tokens=32", "--threads=1", "--device=cpu"]
SIDE = {"gradients": [1.0, 1.0], "whole": [2.0, 2.0], "saved_bytes": 100}
ANSWERS: dict[str, Any] = {
    "step": {"plain": SIDE, "candidate": SIDE},
    "start": {"wall_seconds": 1.0, "cpu_seconds": 2.0, "phases": {"metis_joint_pass": 0.01}},
    "memory": {"saved_bytes": 100, "peak_bytes": 200, "input_bits": 4.5},
    "gemm": {"times": {"cuBLAS bfloat16": [1.0]}, "chosen": {}, "off": {}},
    "quantize": {"cases": [{"source": "x", "blocks": "rows", "bytes": 10, "times": [2.0, 2.0], "copies": [1.0, 1.0]}]},
}


@pytest.fixture
def metis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def here(jobs: list[Job], **how: Any) -> tuple[dict[str, Any], list[Failure], None]:
        return {job.label: ANSWERS[job.request["kind"]] for job in jobs}, [], None

    monkeypatch.setattr(runner, "run_jobs", here)
    return lambda *arguments: CliRunner().invoke(app, ["bench", *arguments])


@pytest.mark.parametrize("command", ["step", "compile", "memory"])
def test_a_table_and_the_files(metis: Any, command: str) -> None:
    result: Result = metis(command, "nvfp4", *TINY)
    assert result.exit_code == 0, result.output
    assert "nvfp4" in result.stdout
    for kind in ("json", "md", "png"):
        assert f"runs/bench/{command}.{kind}" in result.stdout
        assert Path(f"runs/bench/{command}.{kind}").is_file()


def test_quantize(metis: Any) -> None:
    result = metis(
        "quantize", "--shape=16x32", "--shape=32x16", "--format=nvfp4", "--device=cpu", "--threads=1", "--json"
    )
    rows = json.loads(result.stdout)["rows"]
    assert [(row["rows"], row["columns"], row["dtype"], row["format"]) for row in rows] == [
        (16, 32, "float32", "nvfp4 1x16 nearest"),
        (32, 16, "float32", "nvfp4 1x16 nearest"),
    ]
    everything = json.loads(metis("quantize", "--device=cpu", "--json").stdout)["rows"]
    assert {(row["rows"], row["columns"]) for row in everything} == {(4096, 1024)}
    assert [row["format"] for row in everything] == [
        "nvfp4 1x16 nearest",
        "nvfp4 1x16 stochastic round_up",
        "mxfp8 1x32 nearest floor",
    ]


def test_scaling(metis: Any) -> None:
    sizes = ["--widths=16,32", "--depths=1", "--tokens=32"]
    result = metis("scaling", "nvfp4", *sizes, "--json", "--device=cpu")
    rows = json.loads(result.stdout)["rows"]
    assert [(row["axis"], row["at"]) for row in rows] == [("width", 16), ("width", 32), ("layers", 1), ("tokens", 32)]
    assert rows[2]["settings"]["width"] == 32  # the middle one


def test_depths(metis: Any) -> None:
    result = metis("compile", "nvfp4", "--depths=3,1", "--json", "--width=16", "--tokens=32", "--device=cpu")
    rows = json.loads(result.stdout)["rows"]
    assert [(row["policy"], row["settings"]["layers"]) for row in rows] == [
        ("high", 1),
        ("high", 3),
        ("nvfp4", 1),
        ("nvfp4", 3),
    ]
    assert Path("runs/bench/depth.png").is_file()


def test_json_is_all_that_stdout_gets(metis: Any) -> None:
    numbers = json.loads(metis("step", "nvfp4", "--json", *TINY, "--width=32").stdout)
    assert {"benchmark", "title", "machine", "rounds", "rows", "failures"} == set(numbers)
    assert [row["settings"]["width"] for row in numbers["rows"]] == [16, 16, 32, 32]
    assert numbers["machine"]["threads"] == 1


def test_what_waits_for_a_gpu_can_be_asked_for(metis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of docs/kernels.md, with a stand-in for the GPU too."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text().partition("## Waiting for a GPU")[2]
    commands = [shlex.split(line)[3:] for line in page.splitlines() if line.startswith("$ metis bench ")]
    assert [command[0] for command in commands] == ["step", "quantize", "gemm", "step", "memory"]
    for command in commands:
        result = metis(*command, "--json", "--rounds=1")
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)["rows"]
        assert rows
        for row in rows:
            assert row.get("settings", {}).get("model", "llama-8b-block") == "llama-8b-block"
            assert row.get("settings", {}).get("dtype", "bfloat16") == "bfloat16"


@pytest.mark.parametrize("command", ["step", "memory"])
def test_the_models(metis: Any, command: str) -> None:
    def settings(*arguments: str) -> dict[str, Any]:
        result = metis(command, "nvfp4", "--json", "--device=cpu", *arguments)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["title"].count("llama-8b-block") == ("--model=llama-8b-block" in arguments)
        return dict(found["rows"][0]["settings"])

    names = ("model", "width", "layers", "heads", "context", "batch")
    gpt, block = settings(), settings("--model=llama-8b-block")
    assert [gpt[name] for name in names] == ["gpt", 512, 4, 8, 256, 8]
    assert [block[name] for name in names] == ["llama-8b-block", 4096, 1, 32, 2048, 4]
    tiny = settings("--model=llama-8b-block", "--width=32", "--layers=2", "--tokens=64")
    assert [tiny[name] for name in names] == ["llama-8b-block", 32, 2, 1, 64, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "nvfp5", *TINY], "nvfp5"),
        (["step", "nvfp4", "--model=bert", "--device=cpu"], "model must be gpt or llama-8b-block, got 'bert'"),
        (["memory", "nvfp4", "--model=llama-8b-block", "--tokens=3000"], "tokens must be a multiple of 2048"),
        (["step", "nvfp4", *TINY, "--rounds=0"], "rounds must be at least 1, got 0"),
        (["step", "nvfp4", *TINY, "--threads=0"], "threads must be at least 1, got 0"),
        (["step", "nvfp4", *TINY, "--tokens=300"], "tokens must be a multiple of 256"),
        (["step", "nvfp4", *TINY, "--dtype=fp8"], "dtype must be float32 or bfloat16, got 'fp8'"),
        (["compile", "nvfp4", *TINY, "--width=0"], "width must be at least 1, got 0"),
        (["memory", "nvfp4", *TINY, "--device=tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["scaling", "nvfp4", "--depths=2,x"], "depths must be numbers above 0 with commas between them, got '2,x'"),
        (["gemm", "--device=cpu"], "products of packed operands need a CUDA GPU, got device 'cpu'"),
        (["gemm", "--device=cuda:99"], "device 'cuda:99' is not there"),
        (["quantize", "--device=cuda:99"], "device 'cuda:99' is not there"),
        (["quantize", "--device=cpu", "--shape=16"], "a shape must be ROWSxCOLUMNS in numbers above 0, got '16'"),
        (["quantize", "--device=cpu", "--format=nvfp5"], "nvfp5"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(metis: Any, arguments: list[str], message: str) -> None:
    result = metis(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("metis: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_folder_that_cannot_be_made(metis: Any) -> None:
    Path("file").write_text("")
    assert "cannot make the folder file" in metis("step", "nvfp4", *TINY, "--out=file").stderr


@pytest.mark.parametrize(("signal", "status"), [(None, 1), (15, 143)])
@pytest.mark.parametrize("command", ["step", "compile", "memory", "scaling", "quantize"])
def test_when_everything_failed_it_is_named_and_nothing_is_written(
    metis: Any, monkeypatch: Any, command: str, signal: int | None, status: int
) -> None:
    failed = ({}, [Failure(label="nvfp4, width 16", reason="out of memory")], signal)
    monkeypatch.setattr(runner, "run_jobs", lambda jobs, **how: failed)
    given = {"scaling": ["nvfp4", "--device=cpu"], "quantize": ["--device=cpu"]}
    result = metis(command, *given.get(command, ["nvfp4", *TINY]))
    assert result.exit_code == status
    assert "metis: nvfp4, width 16 failed: out of memory" in result.stderr
    assert result.stdout == ""
    assert list(Path("runs/bench").iterdir()) == []


def test_without_matplotlib_nothing_is_measured(metis: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(runner, "run_jobs", lambda *jobs, **how: pytest.fail("something was measured"))
    result = metis("step", "nvfp4", *TINY)
    assert result.exit_code == 2
    assert "metis: plots need matplotlib: pip install 'metis-compile[train]'" in result.stderr


def test_help_is_quick_because_torch_is_not_imported() -> None:
    code = (
        "import sys; from metis_compile.cli import app; app(['bench', 'step', '--help'], standalone_mode=False);"
        "sys.exit(', '.join(m for m in ('torch', 'matplotlib', 'sympy') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
