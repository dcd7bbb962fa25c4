"""A monitor's records as curves, a heat map and a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metis_compile.html_report import Chart, HeatMap, ReportError, Table, read_statistics, statistics_section


def record(step: int, site: str, operand: str, error: float | str, **fields: Any) -> dict[str, Any]:
    same = {"rank": 0, "op": "linear", "gemm": "fprop", "call": 0}
    return same | {"step": step, "site": site, "operand": operand, "error": error} | fields


RECORDS = [
    record(step, site, operand, base * (1 + step), **fields)
    for step in (0, 10)
    for site, base in (("a", 0.01), ("b", 0.02), ("c", 0.03))
    for operand, fields in (
        ("activation", {"side": "left", "amax": 2.0, "split_energy": None, "what_if": {"mxfp8": {"error": base / 4}}}),
        ("product", {}),
    )
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "statistics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    return path


def test_curves_are_medians_over_modules(file: Path) -> None:
    section = statistics_section(read_statistics(file))
    charts = {block.title: block for block in section.blocks if isinstance(block, Chart)}
    assert set(charts) == {"Error of the products", "Error of quantization", "Largest magnitude"}
    (line,) = charts["Error of the products"].lines
    assert (line.label, list(line.x)) == ("fprop", [0, 10])
    assert list(line.y) == pytest.approx([2.0, 22.0])
    assert list(line.low) == pytest.approx([1.2, 13.2])
    assert list(line.high) == pytest.approx([2.8, 30.8])
    (line,) = charts["Error of quantization"].lines
    assert (line.label, list(line.y)) == ("fprop activation", pytest.approx([2.0, 22.0]))


def test_the_last_step_by_module(file: Path) -> None:
    section = statistics_section(read_statistics(file))
    (heat,) = [block for block in section.blocks if isinstance(block, HeatMap)]
    assert heat.title == "Errors in step 10"
    assert (heat.rows, heat.columns) == (["a", "b", "c"], ["fprop activation", "fprop product"])
    assert [row[0] for row in heat.values] == pytest.approx([11.0, 22.0, 33.0])
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.headings == ("operand", "as it is", "mxfp8")
    assert table.rows == [("fprop activation", "22.00 %", "0.50 %")]


def test_a_record_that_is_there_twice_counts_once(file: Path) -> None:
    with file.open("a") as more:
        more.write(json.dumps(record(10, "a", "product", 0.5)) + "\n")
    found = read_statistics(file)
    assert len(found) == len(RECORDS)
    assert [r["error"] for r in found if (r["step"], r["site"], r["operand"]) == (10, "a", "product")] == [0.5]


def test_what_is_not_finite_is_left_out_of_curves(file: Path) -> None:
    with file.open("a") as more:
        more.writelines(json.dumps(record(20, site, "product", "nan")) + "\n" for site in "abc")
    section = statistics_section(read_statistics(file))
    assert list(section.blocks[0].lines[0].x) == [0, 10]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no records"),
        ("not json\n", "line 1: not a record of a monitor: 'not json'"),
        ('{"step": 1}\n', "is neither a report of metis train nor a monitor's JSON lines"),
        ('{"step": 1}\n{"step": 2}\n', "holds what is no record of a monitor"),
        ("[1, 2]\n", "line 1: not a record of a monitor"),
        ('{"step": "x", "site": "a", "gemm": "fprop", "operand": "weight"}\n', "line 1: not a record"),
        ('{"step": 1, "site": "a", "gemm": "conv", "operand": "weight"}\n', "holds what is no record of a monitor"),
    ],
)
def test_a_file_of_something_else(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ReportError, match=said):
        read_statistics(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"cannot read .*nowhere.jsonl: No such file or directory"):
        read_statistics(tmp_path / "nowhere.jsonl")
