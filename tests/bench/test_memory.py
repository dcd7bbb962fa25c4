import sys
from typing import Any

import pytest
import torch

from metis_compile import explain
from metis_compile.bench import memory
from metis_compile.bench.candidate import AUTOCAST
from metis_compile.train.trainer import build

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_peak_is_what_was_held_at_once_above_what_was_there() -> None:
    there = torch.ones(64 * MIB, dtype=torch.uint8)

    def run() -> None:
        for _ in range(2):  # one after the other, not both
            torch.ones(128 * MIB, dtype=torch.uint8)

    peak = memory.peak_bytes(run, "cpu")
    assert peak is not None
    assert 120 * MIB < peak < 160 * MIB
    assert there.numel() == 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_an_earlier_peak_is_forgotten() -> None:
    torch.ones(256 * MIB, dtype=torch.uint8)
    peak = memory.peak_bytes(lambda: None, "cpu")
    assert peak is not None
    assert peak < 32 * MIB


def test_a_linears_input_takes_what_the_format_does(settings: Any) -> None:
    size = settings(width=128, tokens=64)
    tokens = torch.zeros(size.batch, size.context, dtype=torch.int64)

    def bits(policy: str) -> float | None:
        return memory.input_bits(explain(build(size), tokens, policy=policy).sites)

    assert bits("high") == 32
    assert bits("nvfp4") == pytest.approx(4.5, abs=0.01)  # and 4 bytes a tensor
    assert bits("mxfp8") == 8.25
    assert memory.input_bits([]) is None


def test_the_table(answering: Any, settings: Any, options: Any, console: Any) -> None:
    peaks = {"high": [8, 10], "nvfp4": [None, 2], AUTOCAST: [4, 4], "mxfp4": [None, None]}
    kept = {"high": (4, 32.0), "nvfp4": (1, 4.5), AUTOCAST: (2, None), "mxfp4": (1, 4.25)}

    def run(job: Any) -> dict[str, Any] | None:
        name, _, i = job.label.rpartition(" ")
        saved, bits = kept[name]
        peak = peaks[name][int(i)]
        if (name, i) == ("high", "1"):
            return None  # it failed: the round counts for none
        return {"saved_bytes": saved * MIB, "peak_bytes": peak and peak * MIB, "input_bits": bits}

    jobs = answering(run)
    report = memory.bench_memory(["nvfp4", "mxfp4"], settings(), options, console)
    names = ["high", "nvfp4", "mxfp4", AUTOCAST]
    assert [job.label for job in jobs] == [f"{name} 0" for name in names] + [f"{name} 1" for name in reversed(names)]
    assert report.cells == [
        ["high", "4.0 MiB, 1.00x", "32.00", "8.0 MiB, 1.00x (1.00-1.00)"],
        ["nvfp4", "1.0 MiB, 0.25x", "4.50", "2.0 MiB"],
        ["mxfp4", "1.0 MiB, 0.25x", "4.25", "-"],
        [AUTOCAST, "2.0 MiB, 0.50x", "-", "4.0 MiB, 0.50x (0.50-0.50)"],
    ]


def test_without_plain_inductor_there_are_no_ratios(answering: Any, settings: Any, options: Any, console: Any) -> None:
    given = {"saved_bytes": MIB, "peak_bytes": 2 * MIB, "input_bits": 4.5}
    answering(lambda job: None if job.request["candidate"] == "high" else given)
    report = memory.bench_memory(["nvfp4"], settings(), options, console)
    assert report.cells[0] == ["nvfp4", "1.0 MiB", "4.50", "2.0 MiB"]


def test_the_worker_counts_what_a_model_keeps(settings: Any, uncompiled: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "explain", lambda model, tokens, policy: type("", (), {"sites": ()}))
    result = memory.measure("high", settings(), lambda done: None)
    assert result["saved_bytes"] > 32 * 16 * 4  # more than one activation
    assert result["input_bits"] is None
