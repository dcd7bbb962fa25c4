from typing import Any

import pytest

from metis_compile.bench import step
from metis_compile.bench.candidate import AUTOCAST
from metis_compile.bench.errors import BenchError
from metis_compile.bench.report import write
from metis_compile.bench.turns import WARM_UP
from metis_compile.policy import PolicyError


def test_ratios_are_of_the_same_round(answering: Any, steps: Any, settings: Any, options: Any, console: Any) -> None:
    jobs = answering(lambda job: steps([1.0, 3.0], [2.0, 6.0]))
    report = step.bench_step(["nvfp4"], [settings(), settings(width=32)], options, console)
    assert [(job.request["candidate"], job.request["settings"]["width"]) for job in jobs] == [
        ("nvfp4", 16),
        (AUTOCAST, 16),
        ("nvfp4", 32),
        (AUTOCAST, 32),
    ]
    assert all(job.worker == "metis_compile.bench.worker" and job.threads == 1 for job in jobs)
    assert all(job.request["kind"] == "step" and job.steps == WARM_UP + 2 for job in jobs)
    row = report.numbers["rows"][0]
    assert row["policy"] == "nvfp4"
    assert row["ratio"]["forward_backward"]["median"] == 2
    assert row["ratio"]["forward_backward_of_sums"] == 2
    assert row["ratio"]["step"]["median"] == pytest.approx((3 / 2 + 7 / 4) / 2)
    assert report.cells[0] == [
        "nvfp4",
        "16",
        "2000.0 ms",
        "4000.0 ms",
        "2.00x",
        "2.00-2.00",
        "2.00x",
        "1.62x (1.56-1.69)",
    ]


def test_beside_bfloat16_there_is_no_other_line(
    answering: Any, steps: Any, settings: Any, options: Any, console: Any
) -> None:
    jobs = answering(lambda job: steps([1.0], [2.0]))
    step.bench_step(["nvfp4"], [settings(dtype="bfloat16")], options, console)
    assert [job.request["candidate"] for job in jobs] == ["nvfp4"]


def test_what_failed_is_left_out_and_named(
    answering: Any, steps: Any, settings: Any, options: Any, console: Any
) -> None:
    answering(lambda job: None if job.request["candidate"] == "mxfp4" else steps([1.0], [2.0]))
    report = step.bench_step(["nvfp4", "mxfp4"], [settings()], options, console)
    assert [row["policy"] for row in report.numbers["rows"]] == ["nvfp4", AUTOCAST]
    assert [failure.label for failure in report.measured.failures] == ["mxfp4, width 16"]
    assert report.to_dict(options)["failures"] == ["mxfp4, width 16"]
    assert write(report, options)["png"].read_bytes().startswith(b"\x89PNG")  # a gap among its bars


def test_a_bad_policy_is_found_before_anything_runs(answering: Any, settings: Any, options: Any, console: Any) -> None:
    jobs = answering(lambda job: None)
    with pytest.raises(PolicyError, match="nvfp5"):
        step.bench_step(["nvfp4", "nvfp5"], [settings()], options, console)
    assert jobs == []


def test_policies_that_would_look_the_same(
    answering: Any, settings: Any, options: Any, console: Any, tmp_path: Any
) -> None:
    path = tmp_path / "nvfp4.toml"
    path.write_text('extends = "mxfp4"\n')
    with pytest.raises(BenchError, match="two policies have the name 'nvfp4'"):
        step.bench_step(["nvfp4", str(path)], [settings()], options, console)


def test_the_worker_times_plain_inductor_and_the_policy(settings: Any, uncompiled: None) -> None:
    result = step.measure("nvfp4", settings(), lambda done: None, rounds=3)
    assert set(result) == {"plain", "candidate"}
    assert {len(result[side][what]) for side in result for what in ("gradients", "whole")} == {3}
