"""The page of a comparison: its gaps are the table's, with a confidence band over seeds."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from parsed_html import Parsed
from rich.console import Console

from metis_compile.compare import comparison, stored
from metis_compile.compare.comparison import Comparison, Options
from metis_compile.compare.page import half_width, page
from metis_compile.compare.record import Record
from metis_compile.compare.stored import stored_comparison
from metis_compile.compare.summary import from_json, summarize, to_json
from metis_compile.html_report import Chart, ReportError, html
from metis_compile.policy import Policy

SETTINGS = {"model": "gpt", "steps": 24, "dtype": "float32", "width": 16, "layers": 1, "context": 16, "batch": 2}


def record(arm: str, seed: int, factor: float, **changes: Any) -> Record:
    losses = [2.0 * factor] * 24
    values: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "settings": SETTINGS,
        "text": "a" * 64,
        "policy": "" if arm == "high" else Policy.load(arm).digest(),
        "losses": losses,
        "validation_loss": losses[-1],
        "saved_bytes": 100,
        "step_seconds": None,
        "compile_seconds": 1.0,
        "threads": 1,
        "versions": {},
    }
    return Record(**values | changes)


def records() -> list[Record]:
    high = [record("high", seed, 1.0) for seed in range(3)]
    return high + [record("nvfp4", seed, 1 + gap / 100) for seed, gap in enumerate((1.0, 2.0, 3.0))]


# t for 95 % of both sides, from a table of Student's distribution
@pytest.mark.parametrize(("count", "t"), [(2, 12.706), (3, 4.303), (4, 3.182), (6, 2.571), (31, 2.042)])
def test_the_band_is_student_s(count: int, t: float) -> None:
    values = [(-1.0) ** i for i in range(count)]
    mean = sum(values) / count
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    assert half_width(values) == pytest.approx(t * deviation / math.sqrt(count), rel=2e-4)
    assert math.isnan(half_width([1.0]))


def made(found: list[Record], **changes: Any) -> Any:
    rows = summarize(found, [r for r in found if r.arm == "high"], {}, 10)
    return page(found, rows, SETTINGS | changes, {"torch": "2.13.0"}, title="as in the table")


def test_gaps_are_the_table_s_with_their_band() -> None:
    found = made(records())
    chart = found.sections[0].blocks[0]
    assert isinstance(chart, Chart)
    (line,) = chart.lines
    assert line.label == "nvfp4"
    assert list(line.y) == pytest.approx([2.0] * len(line.y))
    assert list(line.high) == pytest.approx([2.0 + 4.3027 / math.sqrt(3)] * len(line.y), rel=1e-4)
    assert line.x[-1] == 24
    parsed = Parsed(html(found))
    parsed.assert_needs_nothing()
    assert parsed.sections == ["gap", "losses", "cost", "rerun"]
    assert ["nvfp4", "3", "+2.00 % ± 1.00", "2.0400", "+2.00 % ± 1.00", "-", "1.00x", "-"] in parsed.cells
    assert "metis compare nvfp4 --model gpt" in parsed.text
    assert "--seeds 0,1,2" in parsed.text


def test_one_seed_has_no_band_and_one_that_diverged_no_point() -> None:
    found = [record("high", 0, 1.0), record("nvfp4", 0, 1.02), record("best", 0, 1.0, losses=[2.0] * 8 + [None] * 16)]
    chart = made(found).sections[0].blocks[0]
    nvfp4, best = chart.lines
    assert nvfp4.low == ()
    assert "confidence" not in chart.note
    assert math.isnan(best.y[-1])
    assert "nan" not in Parsed(html(made(found))).text


def test_curves_begin_where_the_arms_do() -> None:
    chart = made(records(), branch=12).sections[0].blocks[0]
    assert chart.lines[0].x[0] == 12


def test_rows_are_read_back() -> None:
    found = records()
    rows = summarize(found, found[:3], {}, 10)
    assert from_json(json.loads(json.dumps(to_json(rows)))) == rows


def test_a_comparison_writes_its_page_and_what_is_stored_gives_it_again(
    settings: Any, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (comparison, stored):
        monkeypatch.setattr(module, "explanations", lambda *given: [])
    options = Options(out=tmp_path / "out", rounds=0, average=3, html=tmp_path / "page.html")
    outcome = Comparison(["nvfp4"], [0, 1], settings(), options).run(Console(file=io.StringIO()))
    assert outcome.files["html"] == tmp_path / "page.html"
    parsed = Parsed((tmp_path / "page.html").read_text())
    parsed.assert_needs_nothing()
    assert parsed.sections == ["gap", "losses", "cost", "policy", "rerun"]
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert f"{report['rows'][1]['validation_loss']:.4f}" in parsed.text
    again = Parsed(html(stored_comparison(tmp_path / "out")))
    assert again.cells == parsed.cells

    trial = tmp_path / "out" / "trials" / "nvfp4-seed0.json"
    trial.write_text(trial.read_text().replace(Policy.load("nvfp4").digest(), "0" * 64))
    (tmp_path / "out" / "trials" / "nvfp4-seed1.json").unlink()
    with pytest.raises(ReportError, match="the policy 'nvfp4' was changed since it was compared"):
        stored_comparison(tmp_path / "out")
    for file in (tmp_path / "out" / "trials").iterdir():
        file.unlink()
    with pytest.raises(ReportError, match=r"has no trials of compare.json: a report needs their losses"):
        stored_comparison(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{}], "settings": {}, "machine": {}}'])
def test_a_file_that_is_no_comparison(text: str, tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(ReportError, match=r"compare.json is no comparison of metis compare"):
        stored_comparison(tmp_path)
