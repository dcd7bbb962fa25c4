import json
from pathlib import Path
from typing import Any

import pytest
from parsed_html import Parsed
from typer.testing import CliRunner, Result

from metis_compile.cli import app

ROOT = Path(__file__).parents[2]
RUN = ROOT / "benchmarks" / "results" / "train.json"
STATISTICS = {"step": 0, "site": "a", "gemm": "fprop", "operand": "weight", "error": 0.1}
EFFECT = {"loss": 0.1, "gradient": 0.2}
SHARE = {
    "module": "a",
    "gemm": "fprop",
    "operand": "weight",
    "treatments": ["nvfp4"],
    "alone": EFFECT,
    "without": EFFECT,
}
BLAME = {"policy": "nvfp4", "batches": 1, "loss": 2.0, "total": EFFECT, "shares": [SHARE]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of one's own; the model is not looked at, which takes seconds and is tested elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("metis_compile.train.stored.explanations", lambda *given: [])
    Path("statistics.jsonl").write_text(json.dumps(STATISTICS) + "\n")
    Path("blame.json").write_text(json.dumps(BLAME))


def report(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_committed_run_has_a_page_with_its_numbers() -> None:
    result = report(RUN, "--html", "new/page.html", "--statistics", "statistics.jsonl", "--blame", "blame.json")
    assert result.exit_code == 0, result.output
    assert result.stdout == "html: new/page.html\n"
    parsed = Parsed(Path("new/page.html").read_text())
    parsed.assert_needs_nothing()
    assert parsed.sections == ["losses", "statistics", "blame", "cost", "policy", "rerun"]
    numbers = json.loads(RUN.read_text())
    assert f"{numbers['validation_gap_percent']:+.2f} %" in parsed.text
    assert f"{numbers['policy']['validation_loss']:.4f}" in parsed.text
    assert "metis train --policy best --model gpt --steps 300 --seed 0" in parsed.text
    assert parsed.text.count("Not in this report") == 1  # spectra: no weights are kept


def test_what_is_left_out_is_said() -> None:
    assert report(RUN, "--html", "page.html").exit_code == 0
    text = Parsed(Path("page.html").read_text()).text
    assert text.count("Not in this report") == 3  # statistics, spectra, blame


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--html", "page.html"], "cannot read nowhere: No such file or directory"),
        ([".", "--html", "page.html"], "cannot read report.json: No such file or directory"),
        (["blame.json", "--html", "page.html"], "blame.json is no report of metis train"),
        (["statistics.jsonl", "--html", "page.html"], "statistics.jsonl is no report of metis train"),
        ([RUN, "--html", "."], "cannot write .: it is a folder"),
        ([RUN, "--html", "page.html", "--statistics", "blame.json"], "neither a report of metis train nor a monitor's"),
        ([RUN, "--html", "page.html", "--blame", "statistics.jsonl"], "is not what metis blame --json prints"),
        ([RUN, "--html", "page.html", "--blame", "nowhere"], "cannot read nowhere: No such file or directory"),
        ([ROOT / "benchmarks/results/compare-gpt", "--html", "page.html"], "a report needs their losses"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[Any], message: str) -> None:
    result = report(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("metis: ")
    assert message in line
    assert not Path("page.html").exists()
