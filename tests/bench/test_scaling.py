from pathlib import Path
from typing import Any

from metis_compile.bench import runner, scaling
from metis_compile.bench.report import write

MIDDLE = {"width": 16, "layers": 1, "tokens": 32}
POINTS = {"width": [16, 32], "layers": [1], "tokens": [32, 64]}


def test_one_axis_at_a_time_and_the_middle_once(answering: Any, steps: Any, options: Any, console: Any) -> None:
    def run(job: Any) -> dict[str, Any] | None:
        size = job.request["settings"]
        if job.request["kind"] == "start":
            plain = job.request["candidate"] == "high"
            cache = Path(job.environment["TORCHINDUCTOR_CACHE_DIR"])
            if job.label.endswith("cold"):
                assert not list(cache.iterdir())
                (cache / job.request["candidate"]).mkdir()
                return {"wall_seconds": 1.0 if plain else size["width"] / 16, "cpu_seconds": 1.0, "phases": {}}
            return {"wall_seconds": 1.0 if plain else 0.5, "cpu_seconds": 1.0, "phases": {}}
        cache = Path(job.environment["TORCHINDUCTOR_CACHE_DIR"])
        assert {path.name for path in cache.iterdir()} == {"high", "nvfp4"}
        return None if size["context"] == 64 else steps([1.0, 1.0], [3.0, 3.0])

    jobs = answering(run)
    report = scaling.bench_scaling(["nvfp4"], MIDDLE, POINTS, "cpu", "float32", options, console)
    sizes = {(j.request["settings"]["width"], j.request["settings"]["context"]) for j in jobs}
    assert sizes == {(16, 32), (32, 32), (16, 64)}
    assert len(jobs) == 3 * 5  # plain's starts, the policy's, and both's steps in turn, at each size
    rows = {(row["axis"], row["at"]): row for row in report.numbers["rows"]}
    assert set(rows) == {("width", 16), ("width", 32), ("layers", 1), ("tokens", 32), ("tokens", 64)}
    assert rows["width", 32]["cold_ratio"] == 2
    assert rows["width", 32]["step_ratio"] == 3
    assert rows["layers", 1]["saved_ratio"] == 0.25
    assert rows["tokens", 64]["step_ratio"] is None
    assert report.cells[0] == ["nvfp4", "width", "16", "3.00x (3.00-3.00)", "1.00x", "0.50x", "0.25x"]
    assert report.cells[-1] == ["nvfp4", "tokens", "64", "-", "1.00x", "0.50x", "-"]
    assert rows["tokens", 64]["step_quartiles"] is None
    assert write(report, options)["png"].stat().st_size > 1000


def test_when_it_is_stopped_no_steps_are_begun(steps: Any, options: Any, console: Any, monkeypatch: Any) -> None:
    given: list[list[str]] = []

    def run_jobs(jobs: list[Any], **how: Any) -> tuple[dict[str, Any], list[Any], int]:
        given.append([job.request["kind"] for job in jobs])
        return {}, [], 15

    monkeypatch.setattr(runner, "run_jobs", run_jobs)
    report = scaling.bench_scaling(["nvfp4"], MIDDLE, POINTS, "cpu", "float32", options, console)
    assert [set(kinds) for kinds in given] == [{"start"}]
    assert report.measured.signal == 15
