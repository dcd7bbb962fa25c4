import re
from pathlib import Path
from typing import Any

import pytest

import metis_compile
from metis_compile.bench import start


def answer(wall: float, **phases: float) -> dict[str, Any]:
    return {"wall_seconds": wall, "cpu_seconds": 2 * wall, "phases": {"backend_compile": wall, **phases}}


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
        slow = 3.0 if job.request["contender"] == "nvfp4" else 2.0
        return answer(slow, metis_joint_pass=0.06) if job.label.endswith("cold") else answer(slow / 2)

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
        ["nvfp4", "cold", "3.0 s", "6.0 s", "1.50x (1.50-1.50)", "1.50x (1.50-1.50)", "2.0 %", "0.0 %"],
        ["nvfp4", "warm", "1.5 s", "3.0 s", "1.50x (1.50-1.50)", "1.50x (1.50-1.50)", "0.0 %", "0.0 %"],
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
