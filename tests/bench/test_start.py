import re
from pathlib import Path
from typing import Any

import pytest
import torch

import metis_compile
from metis_compile.bench import start
from metis_compile.compat import inductor_sources


def answer(wall: float, kernels: int = 0, **phases: float) -> dict[str, Any]:
    return {
        "wall_seconds": wall,
        "cpu_seconds": 2 * wall,
        "kernels": kernels,
        "phases": {"backend_compile": wall, **phases},
    }


def test_the_share_is_of_our_phases_alone() -> None:
    result = answer(10.0, metis_joint_pass=0.3, metis_backend=0.1, metis_cpu_kernels=1.0)
    assert start.share(result, "passes") == pytest.approx(0.04)
    assert start.share(result, "kernels") == pytest.approx(0.1)
    assert start.share(answer(10.0), "passes") == 0


def test_every_phase_that_the_package_times_is_in_a_share() -> None:
    root = Path(metis_compile.__file__).parent
    sources = [p for folder in (root, root / "passes", root / "kernels") for p in folder.rglob("*.py")]
    timed = {name for path in sources for name in re.findall(r'compile_phase\("(\w+)"\)', path.read_text())}
    assert timed == {name for names in start.SHARES.values() for name in names}


def test_cold_starts_have_a_cache_of_their_own_and_warm_ones_that_of_the_cold(
    answering: Any, settings: Any, options: Any, console: Any
) -> None:
    there: list[bool] = []

    def run(job: Any) -> dict[str, Any]:
        there.append(Path(job.environment["TORCHINDUCTOR_CACHE_DIR"]).is_dir())
        slow = 3.0 if job.request["candidate"] == "nvfp4" else 2.0
        return answer(slow, kernels=18, metis_joint_pass=0.06) if job.label.endswith("cold") else answer(slow / 2)

    jobs = answering(run)
    report = start.bench_compile(["nvfp4"], settings(), options, console)
    order = [
        f"{name} {i}, {how}"
        for name, i in (("high", 0), ("nvfp4", 0), ("nvfp4", 1), ("high", 1))
        for how in ("cold", "warm")
    ]
    assert [job.label for job in jobs] == order
    caches = [job.environment["TORCHINDUCTOR_CACHE_DIR"] for job in jobs]
    assert caches[::2] == caches[1::2]
    assert len(set(caches)) == 4
    assert all(there)
    assert not any(Path(cache).exists() for cache in caches)
    row = report.numbers["rows"][1]
    assert row["cold"]["ratio"]["wall"]["median"] == row["cold"]["ratio"]["cpu"]["median"] == 1.5
    assert row["cold"]["shares"] == pytest.approx({"passes": 0.02, "kernels": 0})
    assert report.cells[2:] == [
        ["nvfp4", "cold", "3.0 s", "6.0 s", "1.50x (1.50-1.50)", "1.50x (1.50-1.50)", "18", "2.0 %", "0.0 %"],
        ["nvfp4", "warm", "1.5 s", "3.0 s", "1.50x (1.50-1.50)", "1.50x (1.50-1.50)", "0", "0.0 %", "0.0 %"],
    ]


def test_a_round_that_failed_on_one_side_counts_on_neither(
    answering: Any, settings: Any, options: Any, console: Any
) -> None:
    seconds = {"high 0": 1.0, "nvfp4 0": None, "high 1": 5.0, "nvfp4 1": 10.0}

    def run(job: Any) -> dict[str, Any] | None:
        wall = seconds[job.label.split(",")[0]]
        return None if wall is None else answer(wall)

    answering(run)
    report = start.bench_compile(["nvfp4"], settings(), options, console)
    assert report.numbers["rows"][1]["cold"]["ratio"]["wall"]["median"] == 2
    assert len(report.measured.failures) == 2


def test_kernels_are_those_that_inductor_writes() -> None:
    counts = []
    for _ in range(2):
        torch.compiler.reset()
        x = torch.randn(32, 32)
        with inductor_sources() as sources:
            torch.compile(lambda x: torch.nn.functional.gelu(torch.mm(torch.sin(x), x)))(x)
        counts.append(start.kernels_in(sources))
    assert counts == [2, 2]  # before the product and after it; the second time from a cache


def test_the_worker_counts_kernels(settings: Any, uncompiled: None) -> None:
    assert start.measure("nvfp4", settings(), lambda done: None)["kernels"] == 0


def test_the_table_of_an_earlier_report(answering: Any, settings: Any, options: Any, console: Any) -> None:
    answering(lambda job: answer(2.0, kernels=1 + int(job.label.split()[1][0])))
    numbers = start.bench_compile([], settings(), options, console).numbers
    assert [row[6] for row in start.cells(numbers)] == ["1 or 2"] * 2
    for how in start.STARTS:
        del numbers["rows"][0][how]["rounds"]
        for each in numbers["rows"][0][how]["starts"]:
            del each["kernels"]
    assert start.cells(numbers)[0][:7] == ["high", "cold", "2.0 s", "4.0 s", *["1.00x (1.00-1.00)"] * 2, "-"]
