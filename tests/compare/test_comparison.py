"""Comparisons of uncompiled models, so as to be quick; what processes do is tested in processes."""

import functools
import io
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metis_compile.compare import comparison
from metis_compile.compare.comparison import Comparison, Options, Outcome
from metis_compile.compare.cost import Cost
from metis_compile.compare.record import read
from metis_compile.compare.run import run_once
from metis_compile.compare.run_config import RunConfig
from metis_compile.measure import schedule
from metis_compile.measure.progress import JobProgress
from metis_compile.measure.schedule import Job, run_jobs
from metis_compile.train.errors import TrainError

Go = Callable[..., Outcome]
WORKER = "metis_compile.compare.worker"


@pytest.fixture
def go(tmp_path: Path, settings: Any) -> Go:
    """Run a comparison of tiny models."""

    def call(
        *arms: str,
        seeds: tuple[int, ...] = (0,),
        out: str = "out",
        average: int = 3,
        branch: int = 0,
        **changes: Any,
    ) -> Outcome:
        options = Options(out=tmp_path / out, branch=branch, jobs=2, threads=1, average=average, rounds=0)
        return Comparison(arms, seeds, settings(**changes), options).run(Console(file=io.StringIO()))

    return call


def test_a_comparison_is_resumable_and_grows(go: Go, in_process: None, tmp_path: Path) -> None:
    first = go("high+nudged")
    assert [row.arm for row in first.rows] == ["high", "high+nudged"]
    high, nudged = first.rows
    assert high.train_gap.mean == high.validation_gap.mean == 0
    assert 0 < abs(nudged.train_gap.mean) < 1e-2
    assert first.missing == []
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "trials").iterdir()}
    assert set(files) == {"high-seed0.json", "high+nudged-seed0.json"}

    both = go("high+nudged", seeds=(0, 1))
    assert [row.seeds for row in both.rows] == [[0, 1], [0, 1]]
    assert both.rows[1].train_gap.deviation is not None
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "trials").iterdir()}
    assert files.items() <= kept.items()  # nothing was run twice
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "compare.json",
        "gap.png",
        "order.md",
        "table.md",
        "trials",
        "unfinished",
    ]
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["arm"] for row in report["rows"]] == ["high", "high+nudged"]
    assert report["settings"]["width"] == 16
    assert "| `high+nudged` | 2 |" in (tmp_path / "out" / "table.md").read_text()

    assert report["order"] == ["high"], "the same policy from another start has no place of its own"
    assert "| high+nudged less high | 2 |" in (tmp_path / "out" / "order.md").read_text()

    with pytest.raises(
        TrainError, match=r"high-seed0.json is of a comparison with steps 6 and not 7: give another --out"
    ):
        go("high+nudged", steps=7)
    (tmp_path / "text.txt").write_text("something else " * 500)
    with pytest.raises(TrainError, match="on another text"):
        go("high+nudged")


def test_what_was_measured_of_a_step_is_drawn(go: Go, in_process: None, tmp_path: Path) -> None:
    assert "cost" not in go("high+nudged").files
    cost = Cost(
        flops_ratio=1.1,
        step_ratio=1.5,
        step_ratio_quartiles=(1.4, 1.6),
        step_seconds=1.5,
        baseline_seconds=1.0,
        threads=1,
    )
    entry = {"policy": RunConfig(text="high+nudged").variant().digest, "cost": asdict(cost)}
    (tmp_path / "out" / "costs.json").write_text(json.dumps({"high+nudged": entry}))
    outcome = go("high+nudged")
    assert outcome.rows[1].cost == replace(cost, step_ratio_quartiles=[1.4, 1.6])  # type: ignore[arg-type]
    assert outcome.files["cost"].read_bytes().startswith(b"\x89PNG")


def test_a_record_from_before_a_setting_was_there_has_its_default(go: Go, in_process: None, tmp_path: Path) -> None:
    go()
    path = tmp_path / "out" / "trials" / "high-seed0.json"
    values = json.loads(path.read_text())
    for name in ("warmup", "final_rate", "clip", "average_weights", "ema"):
        del values["settings"][name]
    path.write_text(json.dumps(values))
    assert go().missing == []
    with pytest.raises(TrainError, match=r"with final_rate 0.1 and not 0.0: give another --out"):
        go(final_rate=0.0)


def test_a_policy_that_changed_is_not_mixed_with_its_past(go: Go, in_process: None, tmp_path: Path) -> None:
    policy = tmp_path / "mine.toml"
    policy.write_text('extends = "nvfp4"\n')
    assert [row.arm for row in go(str(policy)).rows] == ["high", "mine"]
    policy.write_text('extends = "mxfp8"\n')
    with pytest.raises(TrainError, match=r"mine-seed0.json: the policy .*mine.toml' was changed since"):
        go(str(policy))


def test_an_interrupted_trial_goes_on_with_the_same_curve(
    go: Go, uncompiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(steps=300, out="whole")
    stepped, stop = JobProgress.stepped, schedule._Worker.stop
    seen, told = threading.Event(), threading.Event()
    steps: list[int] = []

    def stop_once(self: JobProgress, label: str, done: int, note: str) -> None:
        stepped(self, label, done, note)
        steps.append(done)
        if done >= 3 and not seen.is_set():
            seen.set()
            os.kill(os.getpid(), signal.SIGINT)
            assert told.wait(60)  # nothing reads meanwhile: the worker has about a hundred lines until its pipe is full

    def emit(self: Any) -> None:
        stop(self)
        told.set()

    monkeypatch.setattr(JobProgress, "stepped", stop_once)
    monkeypatch.setattr(schedule._Worker, "stop", emit)
    monkeypatch.setattr(subprocess, "Popen", functools.partial(subprocess.Popen, pipesize=4096))
    stopped = go(steps=300)
    assert stopped.signal == signal.SIGINT
    assert stopped.missing == ["high seed 0"]
    assert stopped.rows == []
    assert (tmp_path / "out" / "unfinished" / "high-seed0" / "checkpoint.pt").exists()
    steps.clear()
    resumed = go(steps=300)
    assert min(steps) > 3  # none is taken again
    losses = [read(tmp_path / out / "trials" / "high-seed0.json").losses for out in ("whole", "out")]
    assert len(losses[0]) == 300
    assert losses[0] == losses[1]
    assert resumed.rows[0].validation_loss == whole.rows[0].validation_loss


def test_arms_branch_off_full_precision(go: Go, in_process: None, tmp_path: Path) -> None:
    whole = go("high+nudged", out="whole")
    branched = go("high+redrawn", seeds=(0, 1), branch=4)
    assert "6 steps of 32 tokens, float32, the first 4 of them in full precision" in branched.title
    alone, high, redrawn = (
        read(tmp_path / folder / "trials" / f"{name}-seed0.json")
        for folder, name in (("whole", "high"), ("out", "high"), ("out", "high+redrawn"))
    )
    assert high.losses == alone.losses, "the same run, in two pieces"
    assert redrawn.losses == high.losses, "full precision draws nothing"
    assert high.validation_loss == alone.validation_loss
    assert high.saved_bytes == alone.saved_bytes
    assert high.settings == {**alone.settings, "branch": 4}
    assert branched.rows[0].seeds == [0, 1]
    assert whole.rows[0].train_loss == pytest.approx(high.mean_loss(3))

    belongs = "high-seed0.json is of a comparison with branch"
    with pytest.raises(TrainError, match=f"{belongs} 4 and not None: give another --out"):
        go()
    with pytest.raises(TrainError, match=f"{belongs} None and not 3: give another --out"):
        go(out="whole", branch=3)
    record = tmp_path / "out" / "trials" / "high-seed1.json"
    losses = read(record).losses
    record.unlink()
    go(seeds=(1,), branch=4)
    assert read(record).losses == losses, "from the checkpoint that was there"


def test_a_branch_of_another_run_is_not_gone_on_from(go: Go, in_process: None, tmp_path: Path, settings: Any) -> None:
    go(branch=4)
    for changed, message in (({"learning_rate": 1e-2}, "learning_rate"), ({}, "has done 4 steps and not 3")):
        with pytest.raises(TrainError, match=message):
            run_once(
                RunConfig(text="high"), settings(policy="high", **changed), tmp_path / "out", lambda *_: None, branch=3
            )


def test_a_branch_does_not_go_on_from_what_began_without_it(go: Go, in_process: None, tmp_path: Path) -> None:
    begun = tmp_path / "out" / "unfinished" / "high-seed0" / "checkpoint.pt"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"of a run without a branch")
    assert go(branch=4).missing == []
    assert begun.exists()


def test_what_cannot_branch_off(go: Go) -> None:
    with pytest.raises(TrainError, match="branch must be below the 6 steps, got 6"):
        go(branch=6)
    with pytest.raises(TrainError, match=r"'high\+nudged' starts otherwise"):
        go("high+nudged", branch=2)


def test_a_trial_that_fails_does_not_stop_the_others(tmp_path: Path, settings: Any, uncompiled: None) -> None:
    from dataclasses import asdict

    good: dict[str, Any] = {"kind": "trial", "arm": "high", "settings": asdict(settings())}
    good |= {"out": str(tmp_path), "threads": 1, "branch": 0}
    bad = good | {"settings": asdict(settings()) | {"heads": 3}}
    jobs = [Job(label=name, worker=WORKER, request=r, steps=6, threads=1) for name, r in (("bad", bad), ("good", good))]
    with JobProgress(Console(file=io.StringIO()), 2) as progress:
        results, failures, stopped = run_jobs(jobs, at_once=1, progress=progress)
    assert results == {"good": True}
    assert [f.label for f in failures] == ["bad"]
    assert "width must be a multiple of heads" in failures[0].reason
    assert stopped is None


def test_names_that_would_share_a_file(tmp_path: Path, settings: Any) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text('extends = "nvfp4"\n')
    arms = [str(tmp_path / folder / "mine.toml") for folder in ("a", "b")]
    with pytest.raises(TrainError, match="two policies have the name 'mine'"):
        Comparison(arms, [0], settings(), Options(out=tmp_path / "out"))


def test_a_damaged_record_is_named(go: Go, tmp_path: Path) -> None:
    path = tmp_path / "out" / "trials" / "high-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(TrainError, match=r"high-seed0.json is not a finished trial .*delete it to run it again"):
        go()


@pytest.mark.parametrize("values", [{"jobs": 0}, {"threads": 0}, {"average": 0}, {"rounds": -1}, {"branch": -1}])
def test_options_out_of_range(values: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=f"{next(iter(values))} must be at least"):
        Options(out=tmp_path, **values)


def test_costs_are_kept_until_the_policy_changes(
    go: Go, in_process: None, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go()
    cost = {
        "flops_ratio": 1.5,
        "step_ratio": 2.0,
        "step_ratio_quartiles": [1.9, 2.1],
        "step_seconds": 0.2,
        "baseline_seconds": 0.1,
        "threads": 1,
    }
    asked = []

    def answer(jobs: list[Job], **how: Any) -> Any:
        asked.extend(job.request["arm"] for job in jobs)
        return {job.label: cost for job in jobs}, [], None

    monkeypatch.setattr(comparison, "run_jobs", answer)
    made = Comparison([], [0], settings(), Options(out=tmp_path / "out"))
    for _ in range(2):
        (row,) = made.run(Console(file=io.StringIO())).rows
        assert row.cost is not None
        assert row.cost.step_ratio == 2.0
    assert asked == ["high"]
    stored = json.loads((tmp_path / "out" / "costs.json").read_text())
    stored["high"]["policy"] = "another"
    (tmp_path / "out" / "costs.json").write_text(json.dumps(stored))
    assert made.summary().rows[0].cost is None
    (tmp_path / "out" / "costs.json").write_text("{")
    with pytest.raises(TrainError, match=r"costs.json is damaged"):
        made.summary()
