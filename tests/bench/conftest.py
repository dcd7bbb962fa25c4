"""What the benchmarks' tests have in common: tiny sizes, and stand-ins for what compiles and for the processes."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from metis_compile.bench import candidate, runner
from metis_compile.bench.runner import Options
from metis_compile.bench.size import settings_of
from metis_compile.measure.schedule import Failure, Job
from metis_compile.train.settings import Settings

Answers = Callable[[Job], dict[str, Any] | None]


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Of a tiny model."""
    return lambda **size: settings_of(
        **{"width": 16, "layers": 1, "tokens": 32, "device": "cpu", "dtype": "float32"} | size
    )


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(out=tmp_path / "out", rounds=2, threads=1)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(autouse=True)
def every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured unasked is the same on every CPU."""
    monkeypatch.setattr(candidate, "bf16_gemm", object)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile does nothing."""
    monkeypatch.setattr(torch, "compile", lambda model, **how: model)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], list[Job]]:
    """In place of the worker processes: what a function of the job says; the jobs are listed in their order."""

    def stand_in(answers: Answers) -> list[Job]:
        seen: list[Job] = []

        def run_jobs(jobs: list[Job], *, at_once: int, progress: Any) -> tuple[dict[str, Any], list[Failure], None]:
            assert at_once == 1
            seen.extend(jobs)
            given = {job.label: answers(job) for job in jobs}
            failures = [Failure(label=label, reason="out of memory") for label, found in given.items() if found is None]
            return {label: found for label, found in given.items() if found is not None}, failures, None

        monkeypatch.setattr(runner, "run_jobs", run_jobs)
        return seen

    return stand_in


@pytest.fixture
def steps() -> Callable[..., dict[str, Any]]:
    """What the worker that times steps answers, of these seconds of forward and backward."""

    def side(seconds: list[float], saved: int) -> dict[str, Any]:
        return {"gradients": seconds, "whole": [s + 1 for s in seconds], "saved_bytes": saved}

    return lambda plain, mine: {"plain": side(plain, 400), "candidate": side(mine, 100)}
