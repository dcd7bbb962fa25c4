"""Where two runs part first."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from monitor_records import record
from rich.console import Console

from metis_compile.monitoring.difference import Difference, difference
from metis_compile.monitoring.reading import Run, read_run
from metis_compile.monitoring.records import KEY


def run(name: str, *records: dict[str, Any], losses: list[float] = []) -> Run:  # noqa: B006
    made = Run(name=name, losses=dict(enumerate(losses)))
    for each in records:
        made.records.setdefault(each["step"], {})[tuple(each.get(key) for key in KEY)] = each
    return made


def said(found: Difference) -> str:
    file = io.StringIO()
    Console(file=file, width=120).print(found)
    return file.getvalue()


def test_where_they_part_first() -> None:
    a = run("a", record(0), record(0, site="down"), record(2), record(2, site="down"), record(4))
    b = run(
        "b", record(0), record(0, site="down"), record(2, error=0.102), record(2, site="down", error=0.3), record(4)
    )
    found = difference(a, b)
    assert (found.common_steps, found.compared, found.differing) == ((0, 2, 4), 5, 1)
    (first,) = found.first
    assert (first.step, first.site, first.field, first.a, first.b) == (2, "down", "error", 0.1, 0.3)
    assert "they part first at step 2: down, fprop, activation (left): error 0.1 in A, 0.3 in B" in said(found)
    assert difference(a, b, threshold=0.01).first[0].site == "up"


def test_backward_comes_after_forward_and_from_its_end() -> None:
    sites = [record(0, site=s, gemm=g) for s in ("up", "down") for g in ("fprop", "wgrad")]
    found = difference(run("a", *sites), run("b", *({**r, "amax": 9.0} for r in sites)))
    assert [(p.site, p.gemm) for p in found.first] == [
        ("up", "fprop"),
        ("down", "fprop"),
        ("down", "wgrad"),
        ("up", "wgrad"),
    ]


@pytest.mark.parametrize(
    ("field", "a", "b", "differs"),
    [
        ("amax", 100.0, 109.0, False),  # of its size
        ("amax", 100.0, 112.0, True),
        ("underflow", 0.01, 0.05, False),  # a share: absolute
        ("underflow", 0.01, 0.15, True),
        ("scale_spread", 3.0, 3.05, False),
        ("scale_spread", 3.0, 4.0, True),
        ("amax", float("nan"), float("nan"), False),
        ("amax", float("nan"), 1.0, True),
        ("amax", float("inf"), float("inf"), False),
        ("amax", float("inf"), 1.0, True),
        ("amax", 0.0, 0.0, False),
    ],
)
def test_what_a_difference_is(field: str, a: float, b: float, differs: bool) -> None:
    found = difference(run("a", record(0, **{field: a})), run("b", record(0, **{field: b})))
    assert bool(found.first) == differs
    json.dumps(found.to_dict(), allow_nan=False)


def test_other_formats_and_fields_that_one_run_lacks() -> None:
    a = run("a", record(0, what_if={"mxfp8": {"error": 0.1}, "mxfp4": {"error": 0.1}}, split_energy=None))
    b = run("b", record(0, what_if={"mxfp8": {"error": 0.2}}, split_energy=0.9))
    assert [p.field for p in difference(a, b).first] == ["what_if.mxfp8.error"]


def test_losses() -> None:
    a, b = run("a", losses=[5.0, 4.0, 3.0]), run("b", losses=[5.0, 4.01, 3.3, 2.0])
    found = difference(a, b)
    assert found.loss == (2, 3.0, 3.3)
    assert "losses: part by more than 0.01 of their size at step 2: 3.0000 in A, 3.3000 in B" in said(found)
    assert difference(a, b, loss_threshold=0.2).loss is None
    assert "losses: within 0.2 of their size in all 3 steps" in said(difference(a, b, loss_threshold=0.2))


def test_sites_that_one_run_has_alone() -> None:
    found = difference(run("a", record(0), record(0, site="head")), run("b", record(0), record(0, site="")))
    assert (found.only_a, found.only_b) == (("head",), ("(model)",))
    assert "only A has records of: head" in said(found)


def test_nothing_in_common_and_a_wrong_threshold() -> None:
    with pytest.raises(ValueError, match=r"a and b have no step in common: one has records of steps 0, ..., and"):
        difference(run("a", record(0)), run("b", record(1)))
    with pytest.raises(ValueError, match="threshold must be a number of at least 0, got -1"):
        difference(run("a", record(0)), run("b", record(0)), threshold=-1)


def test_a_report_of_training_with_its_statistics(tmp_path: Path) -> None:
    (tmp_path / "statistics.jsonl").write_text(json.dumps(record(0)) + "\n")
    report = {"policy": {"losses": [2.0, None]}, "files": {"statistics": "gone/statistics.jsonl"}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = read_run(tmp_path)
    assert found.losses[0] == 2.0
    assert list(found.records) == [0]  # beside the report, where the folder was moved
    assert read_run(tmp_path / "report.json").records == found.records
