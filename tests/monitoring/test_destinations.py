"""Where records go, and reading them back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from monitor_records import record

from metis_compile.monitoring.destinations import destination, path_of_rank
from metis_compile.monitoring.reading import ReadError, read_run
from metis_compile.monitoring.records import as_numbers, in_order


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "statistics.jsonl"
    send = destination(path, 0, True)
    assert path.read_text() == ""
    send([record(0, amax=math.nan), record(0, gemm="dgrad", what_if={"mxfp8": {"error": -math.inf}})])
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert [json.loads(line, parse_constant=lambda name: pytest.fail(name))["step"] for line in lines] == [0, 0]
    destination(path, 0, False)([record(5)])
    run = read_run(path)
    assert sorted(run.records) == [0, 5]
    first, second = run.records[0].values()
    assert math.isnan(first["amax"])
    assert second["what_if"]["mxfp8"]["error"] == -math.inf
    destination(path, 0, True)
    assert path.read_text() == ""


def test_a_file_for_each_process() -> None:
    assert path_of_rank(Path("a/statistics.jsonl"), 0) == Path("a/statistics.jsonl")
    assert path_of_rank(Path("a/statistics.jsonl"), 3) == Path("a/statistics.rank3.jsonl")


class Writer:
    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))


def test_tensorboard_and_several() -> None:
    writer, sent = Writer(), []  # type: ignore[var-annotated]
    send = destination([writer, sent.append], 0, True)
    records = [record(4, what_if={"mxfp8": {"error": 0.5}}), record(4, side="right", call=1)]
    send(records)
    assert sent == [records]
    assert writer.scalars == [
        ("metis/up/fprop/activation/amax", 2.0, 4),
        ("metis/up/fprop/activation/error", 0.1, 4),
        ("metis/up/fprop/activation/what_if/mxfp8/error", 0.5, 4),
        ("metis/up/fprop/activation/right/call1/amax", 2.0, 4),
        ("metis/up/fprop/activation/right/call1/error", 0.1, 4),
    ]


def test_tensors_become_numbers() -> None:
    given = record(amax=torch.tensor(1.5), error=None, what_if={"mxfp8": {"error": torch.tensor(2.0)}})
    assert as_numbers([given]) == [record(amax=1.5, error=None, what_if={"mxfp8": {"error": 2.0}})]
    assert as_numbers([]) == []


def test_records_of_a_module_stand_beside_each_other() -> None:
    given = [
        record(site="up"),
        record(site="down"),
        record(site="down", gemm="wgrad", operand="product", side=None),
        record(site="down", gemm="wgrad", operand="gradient"),
        record(site="up", gemm="dgrad"),
    ]
    found = [(r["site"], r["gemm"], r["operand"]) for r in in_order(given)]
    assert found == [
        ("up", "fprop", "activation"),
        ("up", "dgrad", "activation"),
        ("down", "fprop", "activation"),
        ("down", "wgrad", "gradient"),
        ("down", "wgrad", "product"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no records"),
        ("{}", "neither a report of metis train nor a monitor's JSON lines"),
        ("hello\n", "line 1: not a record of a monitor: 'hello'"),
        (json.dumps(record()) + "\n[1]\n", "line 2: not a record of a monitor"),
        (json.dumps({"policy": {"losses": [1]}, "files": {"statistics": "none.jsonl"}}), "none.jsonl, which are not"),
    ],
)
def test_what_is_no_run(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run"
    path.write_text(text)
    with pytest.raises(ReadError, match=message):
        read_run(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"cannot read .*none: No such file"):
        read_run(tmp_path / "none")
    with pytest.raises(ReadError, match=r"there is no report.json in"):
        read_run(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ReadError, match="it is no text"):
        read_run(tmp_path / "binary")
