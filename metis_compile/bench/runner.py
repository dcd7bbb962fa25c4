"""Worker processes of the benchmarks, one after the other, with progress shown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from metis_compile.bench.errors import BenchError
from metis_compile.bench.turns import WARM_UP
from metis_compile.measure.folder import check_folder
from metis_compile.measure.progress import JobProgress
from metis_compile.measure.schedule import Failure, Job, run_jobs
from metis_compile.train.settings import Settings

__all__ = ["Measured", "Options", "Task", "run_tasks"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a benchmark is run."""

    out: Path  # for the report and the plot
    rounds: int  # steps that are timed, or starts
    threads: int | None = None  # of each process; None: as many as torch takes here

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise BenchError(f"rounds must be at least 1, got {self.rounds}")
        if self.threads is not None and self.threads < 1:
            raise BenchError(f"threads must be at least 1, got {self.threads}")
        check_folder(self.out, BenchError)

    @property
    def count(self) -> int:
        """Threads of each process."""
        return self.threads or torch.get_num_threads()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One worker process and what it is to measure."""

    label: str  # for people; unique
    kind: str  # of measurement: a key of worker.KINDS
    candidate: str
    settings: Settings | None = None  # of a model; None where it is kernels that are measured
    given: Mapping[str, Any] = field(default_factory=dict)  # beside these
    steps: int = WARM_UP  # that it will report
    environment: Mapping[str, str] = field(default_factory=dict)
    worker: str = "metis_compile.bench.worker"  # the module that is run, which knows the kind


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the workers gave."""

    results: dict[str, Any]  # by label
    failures: list[Failure]
    signal: int | None  # that stopped them

    def and_then(self, more: "Measured") -> "Measured":
        """What these workers gave, and those that ran after them."""
        return Measured(
            results={**self.results, **more.results}, failures=[*self.failures, *more.failures], signal=more.signal
        )


def run_tasks(tasks: Sequence[Task], options: Options, console: Console) -> Measured:
    """Run the tasks in order, one at a time, so that none disturbs another."""
    jobs = [
        Job(
            label=task.label,
            worker=task.worker,
            request={
                "kind": task.kind,
                "candidate": task.candidate,
                "settings": None if task.settings is None else asdict(task.settings),
                "threads": options.count,
                **task.given,
            },
            steps=task.steps,
            threads=options.count,
            environment=task.environment,
        )
        for task in tasks
    ]
    with JobProgress(console, len(jobs)) as progress:
        results, failures, signal = run_jobs(jobs, at_once=1, progress=progress)
    return Measured(results=results, failures=failures, signal=signal)
