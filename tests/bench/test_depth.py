"""What one more layer adds to a cold start."""

from typing import Any

from metis_compile.bench import depth


def answer(wall: float, passes: float) -> dict[str, Any]:
    return {"wall_seconds": wall, "cpu_seconds": 2 * wall, "kernels": 0, "phases": {"metis_joint_pass": passes}}


def test_a_layer_is_what_lies_between_two_depths(answering: Any, settings: Any, options: Any, console: Any) -> None:
    seen: list[str] = []

    def run(job: Any) -> dict[str, Any]:
        layers = job.request["settings"]["layers"]
        seen.append(job.environment["TORCHINDUCTOR_CACHE_DIR"])
        if job.request["candidate"] == "nvfp4":
            return answer(4.0 + 3.0 * layers, 0.04 + 0.03 * layers)
        return answer(2.0 + 2.0 * layers, 0.0)

    jobs = answering(run)
    report = depth.bench_depth(["nvfp4"], [settings(layers=n) for n in (1, 2, 4)], options, console)
    assert [job.label for job in jobs[:3]] == [
        "high, 1 layers, 0, cold",
        "nvfp4, 1 layers, 0, cold",
        "high, 2 layers, 0, cold",
    ]
    assert [job.label for job in jobs[6:8]] == ["nvfp4, 4 layers, 1, cold", "high, 4 layers, 1, cold"]
    assert len(set(seen)) == len(jobs) == 12  # all of them cold
    assert report.cells == [
        ["nvfp4", "1", "4.0 s", "7.0 s", "-", "-", "-", "-", "1.0 %"],
        ["nvfp4", "2", "6.0 s", "10.0 s", "2.00 s", "3.00 s", "1.50x", "1.50x", "1.0 %"],
        ["nvfp4", "4", "10.0 s", "16.0 s", "2.00 s", "3.00 s", "1.50x", "1.50x", "1.0 %"],
    ]
    assert depth.cells(report.to_dict(options)) == report.cells


def test_what_failed_is_left_open(answering: Any, settings: Any, options: Any, console: Any) -> None:
    answering(lambda job: None if job.request["settings"]["layers"] == 1 else answer(2.0, 0.0))
    report = depth.bench_depth(["nvfp4"], [settings(layers=n) for n in (1, 2)], options, console)
    assert report.cells == [
        ["nvfp4", "1", "-", "-", "-", "-", "-", "-", "-"],
        ["nvfp4", "2", "2.0 s", "2.0 s", "-", "-", "-", "-", "0.0 %"],
    ]
