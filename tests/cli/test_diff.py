"""`metis diff` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from metis_compile.cli import app

RECORD = {
    "step": 0,
    "rank": 0,
    "site": "up",
    "op": "linear",
    "gemm": "fprop",
    "call": 0,
    "operand": "activation",
    "side": "left",
    "amax": 1.0,
}


def written(tmp_path: Path) -> list[str]:
    paths = []
    for name, amax in (("a", 1.0), ("b", 2.0)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({**RECORD, "amax": amax}) + "\n")
        paths.append(str(path))
    return paths


def test_a_table(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["diff", *written(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "they part first at step 0: up, fprop, activation (left): amax 1 in A, 2 in B" in " ".join(
        result.output.split()
    )


def test_json_and_a_threshold(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["diff", *written(tmp_path), "--json"])
    assert json.loads(result.stdout)["first"][0]["field"] == "amax"
    result = CliRunner().invoke(app, ["diff", *written(tmp_path), "--json", "--threshold", "0.7"])
    assert json.loads(result.stdout)["first"] == []


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    a, _ = written(tmp_path)
    result = CliRunner().invoke(app, ["diff", a, str(tmp_path / "none.jsonl")])
    assert result.exit_code == 2
    assert result.stderr.startswith("metis: cannot read")
    assert len(result.stderr.splitlines()) == 1
    result = CliRunner().invoke(app, ["diff", a, a, "--threshold", "-1"])
    assert (result.exit_code, result.stderr) == (2, "metis: threshold must be a number of at least 0, got -1.0\n")
