"""This CPU as a device of the cost model."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from metis_compile.bench import roofline
from metis_compile.bench.errors import BenchError
from metis_compile.cli import app
from metis_compile.cost_model import find_device


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("SIDE", 64), ("ROWS", 64), ("COLUMNS", 64), ("COPIED", 1 << 16)):
        monkeypatch.setattr(roofline, name, size)


def test_each_number_is_the_best_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"float32": [9, 3, 4], "bfloat16": [9, 2, 3], "quantize": [9, 1, 2], "copy": [9, 8, 4], "start": [9, 1, 1]}
    names = list(times)
    calls: list[str] = []

    def seconds(run: object, device: str) -> float:
        calls.append(names[len(calls) % len(names)])
        return float(times[calls[-1]][calls.count(calls[-1]) - 1])

    monkeypatch.setattr(roofline, "seconds", seconds)
    device = roofline.measure_device(2)
    assert len(calls) == 15
    flops = 2 * 64**3
    assert device.rates == {"float32": flops / 2, "bfloat16": flops / 1, "quantize": 64 * 64}
    assert (device.bandwidth, device.start, device.decodes, device.autocast) == (2 * (1 << 16) / 4, 1, True, False)


def test_the_command_writes_what_explain_reads(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "machine", "--rounds", "3", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "GFLOP/s" in result.stdout
    device = find_device(str(tmp_path / "machine.json"))
    assert device.source == "metis bench machine"
    assert device.bandwidth > 0


def test_rounds_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="rounds must be at least 1, got 0"):
        roofline.measure_device(0)
    result = CliRunner().invoke(app, ["bench", "machine", "--threads", "0", "--out", str(tmp_path)])
    assert result.exit_code == 2
