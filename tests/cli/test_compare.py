"""``metis compare`` from the command line, with a stand-in for the processes that train."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from metis_compile.cli import app
from metis_compile.cli.compare import seeds_of
from metis_compile.compare import comparison, gemm_report, worker
from metis_compile.compare.gemm import GemmError
from metis_compile.measure.schedule import Failure, Job
from metis_compile.train.errors import TrainError

SIZES = {"steps": 4, "width": 16, "layers": 1, "heads": 2, "context": 16, "batch": 2, "rounds": 0}
TINY = [*(f"--{name}={value}" for name, value in SIZES.items()), "--device=cpu", "--text=text.txt"]


@pytest.fixture
def metis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", lambda model, **how: model)
    Path("text.txt").write_text("all work and no play makes jack a dull boy. " * 200)

    def here(jobs: list[Job], **how: Any) -> tuple[dict[str, Any], list[Failure], None]:
        for job in jobs:
            assert worker.main(json.dumps(job.request)) == 0
        return {job.label: True for job in jobs}, [], None

    monkeypatch.setattr(comparison, "run_jobs", here)
    monkeypatch.setattr(worker, "emit", lambda **values: None)
    return lambda *arguments: CliRunner().invoke(app, ["compare", *arguments, *TINY])


def test_the_table_and_the_files(metis: Any) -> None:
    result: Result = metis("high+nudged", "--seeds=2", "--average=2")
    assert result.exit_code == 0, result.output
    assert "high+nudged" in result.stdout
    for name in ("compare.json", "table.md", "order.md", "gap.png"):
        assert Path("runs/compare", name).is_file()
        assert name in result.stdout
    assert "by validation gap" not in result.stdout, "there is one policy alone"


def test_the_order_of_several_policies(metis: Any) -> None:
    result: Result = metis("nvfp4", "--seeds=2")
    assert result.exit_code == 0, result.output
    assert "by validation gap" in " ".join(result.stdout.split())


def test_how_it_is_trained_is_an_option(metis: Any) -> None:
    values = {"learning_rate": 0.01, "warmup": 2, "final_rate": 0.5, "clip": 0.25, "average_weights": 0.5, "ema": 0.0}
    result: Result = metis("high", "--seeds=1", *(f"--{k.replace('_', '-')}={v}" for k, v in values.items()))
    assert result.exit_code == 0, result.output
    settings = json.loads(Path("runs/compare/compare.json").read_text())["settings"]
    assert {name: settings[name] for name in values} == values


def test_json_is_all_that_stdout_gets(metis: Any) -> None:
    numbers = json.loads(metis("high+nudged", "--seeds=1,", "--json").stdout)
    assert [row["seeds"] for row in numbers["rows"]] == [[1], [1]]


def test_products_are_compared_without_training_under_a_policy(metis: Any) -> None:
    result = metis("nvfp4", "high+nudged", "--gemm")
    assert result.exit_code == 2
    assert "a comparison of products takes policies alone, got 'high+nudged'" in result.stderr


def test_products_as_tables_and_as_json(metis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm_report, "gemm_errors", errors)
    result = metis("mxfp8", "--gemm")
    assert result.exit_code == 0, result.output
    assert "geometric mean over layers" in result.stdout
    for name in ("gemm.json", "gemm.png", "products.md", "operands.md", "layers.md"):
        assert Path("runs/compare", name).is_file()
        assert name in result.stdout
    numbers = json.loads(metis("mxfp8", "--gemm", "--json").stdout)
    assert numbers["mean_errors"]["mxfp8"]["fprop"] == pytest.approx({"all": 0.05, "activation": 0.04, "weight": 0.03})


def errors(policy: str, *measured: Any) -> list[GemmError]:
    """One product, as if it had been measured."""
    sides = {"left": "activation", "right": "weight", "left_error": 0.04, "right_error": 0.03}
    return [GemmError(policy=policy, module="up", gemm="fprop", error=0.05, **sides)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nvfp5"], "nvfp5"),
        (["nvfp4", "--seeds=none"], "seeds must be a number above 0"),
        (["nvfp4", "--jobs=0"], "jobs must be at least 1"),
        (["nvfp4", "--model=bert"], "model must be one of gpt, llama, llama-8b-block, got 'bert'"),
    ],
)
def test_a_mistake_is_one_line(metis: Any, arguments: list[str], message: str) -> None:
    result = metis(*arguments)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("metis: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_failed_trial_is_named_and_the_status_is_1(metis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = ({}, [Failure(label="nvfp4 seed 0", reason="out of memory")], None)
    monkeypatch.setattr(comparison, "run_jobs", lambda jobs, **how: failed)
    result = metis("nvfp4")
    assert result.exit_code == 1
    assert "metis: nvfp4 seed 0 failed: out of memory" in result.stderr


def test_an_interrupted_comparison_says_how_to_go_on(metis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "run_jobs", lambda jobs, **how: ({}, [], 15))
    result = metis("nvfp4")
    assert result.exit_code == 143
    assert "To go on:" in result.stderr


def test_seeds() -> None:
    assert seeds_of("3") == [0, 1, 2]
    assert seeds_of("0,5") == [0, 5]
    assert seeds_of("2,") == [2]
    for text in ("0", "-1", "a", ",", "1,-2"):
        with pytest.raises(TrainError):
            seeds_of(text)
