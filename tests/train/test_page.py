"""The page of `metis train`: its numbers are the report's, and it has every section of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parsed_html import Parsed

from metis_compile.html_report import ReportError, html
from metis_compile.inspection.explain import Explanation
from metis_compile.policy.schedule import load
from metis_compile.train import loop
from metis_compile.train.loop import Options, run
from metis_compile.train.page import explanations, page
from metis_compile.train.report import Report
from metis_compile.train.settings import Settings
from metis_compile.train.stored import stored_run

COMMENT = "# </code><script>alert(1)</script>"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "mine.toml"
    path.write_text(f'{COMMENT}\nextends = "best"\n')
    return path


@pytest.fixture(scope="module")
def explained(policy: Path) -> list[tuple[str, Explanation]]:
    """Of the model of this folder's tests: looked at once, it takes seconds."""
    tiny = Settings(policy=str(policy), steps=6, width=16, layers=1, heads=2, context=16, batch=2)
    return explanations(tiny, load(str(policy)))


@pytest.fixture
def folder(
    policy: Path,
    explained: list[tuple[str, Explanation]],
    settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Of a run with a page, whose models are not compiled."""
    monkeypatch.setattr(torch, "compile", lambda model, **how: model)
    monkeypatch.setattr(loop, "explanations", lambda *given: explained)
    found = run(settings(policy=str(policy)), Options(out=tmp_path / "out", html=tmp_path / "page.html"))
    assert isinstance(found, Report)
    assert found.files["html"] == tmp_path / "page.html"
    assert found.unwritten == ()
    return tmp_path / "out"


def test_every_section_is_there_and_its_numbers_are_the_report_s(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    written = (folder.parent / "page.html").read_text()
    parsed = Parsed(written)
    parsed.assert_needs_nothing()
    assert parsed.sections == ["losses", "quantized", "spectra", "cost", "policy", "rerun"]
    full, mine = report["full_precision"], report["policy"]
    for name in ("train_loss", "validation_loss"):
        assert f"{full[name]:.4f}" in parsed.text
        assert f"{mine[name]:.4f}" in parsed.text
    for row in (
        [
            "validation loss",
            *(f"{s['validation_loss']:.4f}" for s in (full, mine)),
            f"{report['validation_gap_percent']:+.2f} %",
        ],
        [
            "saved for backward",
            *(f"{s['saved_bytes'] / 2**20:.1f} MiB" for s in (full, mine)),
            f"{report['saved_bytes_ratio']:.2f}x",
        ],
    ):
        assert row in parsed.cells
    assert COMMENT in parsed.text
    assert "<script" not in written
    assert f"--seed {report['settings']['seed']} " in parsed.text
    assert report["machine"]["torch"] in parsed.text


def test_what_is_quantized_and_what_it_saves_are_what_explain_says(
    folder: Path, explained: list[tuple[str, Explanation]]
) -> None:
    (_, explanation), *rest = explained
    assert rest == []
    parsed = Parsed((folder.parent / "page.html").read_text())
    rows = {row[0]: row for row in parsed.cells if row}
    up = explanation.site("blocks.0.mlp.up")
    assert rows["blocks.0.mlp.up"][1] == f"{up.m} x {up.n} x {up.k}"
    assert rows["lm_head"][2] == "high"
    less = 100 * (explanation.saved_bytes / explanation.plain_saved_bytes - 1)
    assert any(f"{less:+.1f} %" in row for row in parsed.cells)
    predicted = explanation.cost("b200")
    assert any(row[1:2] == ["b200"] and f"{predicted.ratio:.2f}x" in row for row in parsed.cells)


def test_a_run_that_is_done_gets_its_page_with_more_in_it(
    folder: Path, policy: Path, explained: list[tuple[str, Explanation]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metis_compile.train.stored.explanations", lambda *given: explained)
    records = [{"step": step, "site": "a", "gemm": "fprop", "operand": "activation", "error": 0.1} for step in (0, 1)]
    parsed = Parsed(html(stored_run(folder, statistics=records)))
    parsed.assert_needs_nothing()
    assert parsed.sections == ["losses", "quantized", "statistics", "cost", "policy", "rerun"]
    before = policy.read_text()
    policy.write_text('extends = "nvfp4"\n')
    try:
        with pytest.raises(ReportError, match=r"the policy '.*mine.toml' was changed since"):
            stored_run(folder)
    finally:
        policy.write_text(before)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {}}', '{"settings": 3, "policy": []}'])
def test_a_file_that_is_no_report(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=r"report.json is (no report of metis train|neither a report)"):
        stored_run(path)


def test_a_run_that_diverged_has_a_page(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    report["policy"]["losses"][3:] = [None] * 3
    report["policy"] |= {"train_loss": None, "validation_loss": None, "step_seconds": None}
    report |= {"train_gap_percent": None, "validation_gap_percent": None, "step_time_ratio": None}
    parsed = Parsed(html(page(report)))
    assert parsed.sections == ["losses", "cost", "rerun"]
    assert "diverged" in parsed.text
    assert "nan" not in parsed.text


def test_the_stages_of_a_schedule_are_explained_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[[stage]]\npolicy = "nvfp4"\nuntil = 0.5\n\n[[stage]]\npolicy = "high"\n')
    tiny = Settings(steps=6, width=16, layers=1, heads=2, context=16, batch=2)
    names = [name for name, _ in explanations(tiny, load(str(path)))]
    assert names == ["nvfp4, until 0.5", "high, to the end"]
