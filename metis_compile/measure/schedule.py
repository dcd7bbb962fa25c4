"""Runs workers, some at a time, shows how far they are, and stops them all when asked to."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import IO, Any

from metis_compile.measure.interrupt import StopRequest
from metis_compile.measure.progress import JobProgress

__all__ = ["Failure", "Job", "run_jobs"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One worker to start."""

    label: str  # for people
    worker: str  # the module that is run, given the request
    request: dict[str, Any]  # JSON
    steps: int  # how many it will report
    threads: int
    environment: Mapping[str, str] = field(default_factory=dict)  # beside ours


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A worker that made no record."""

    label: str
    reason: str


def run_jobs(
    jobs: Sequence[Job], *, at_once: int, progress: JobProgress
) -> tuple[dict[str, Any], list[Failure], int | None]:
    """Run the jobs in order, ``at_once`` of them at any time.

    Returns what each finished one gave, by label; those that failed; and the signal that stopped it all, if one did.
    A failure does not stop the others. When stopped, workers save what they have.
    """
    results: dict[str, Any] = {}
    failures: list[Failure] = []
    waiting = deque(jobs)
    running: dict[Future[dict[str, Any]], tuple[Job, _Worker]] = {}
    stopped = False
    with StopRequest() as stop, ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            while waiting and len(running) < at_once and not stop:
                job = waiting.popleft()
                worker = _Worker(job, progress)
                running[pool.submit(worker.run)] = (job, worker)
            if stop and not stopped:
                stopped = True
                waiting.clear()
                for _, worker in running.values():
                    worker.stop()
            ended, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            progress.waited()
            for future in ended:
                job, _ = running.pop(future)
                answer = future.result()
                if "done" in answer:
                    results[job.label] = answer["done"]
                elif "interrupted" not in answer:
                    failures.append(Failure(label=job.label, reason=answer["error"]))
                progress.ended(job.label, "done" if "done" in answer else answer.get("error", "interrupted"))
        return results, failures, stop.signal


class _Worker:
    """One process."""

    def __init__(self, job: Job, progress: JobProgress) -> None:
        self.job, self.progress = job, progress
        self._process: subprocess.Popen[str] | None = None
        self._stopped = threading.Event()

    def run(self) -> dict[str, Any]:
        """Start it, follow it, return its last line; {"error"} if it ended without one."""
        self.progress.began(self.job.label, self.job.steps)
        with tempfile.TemporaryFile("w+") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.job.worker, json.dumps(self.job.request)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(self.job.threads), **self.job.environment},
                start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and we pass it on once
            )
            if self._stopped.is_set():
                self.stop()
            last = self._follow(self._process)
            status = self._process.wait()
            if not {"done", "interrupted", "error"} & set(last):
                interrupted = self._stopped.is_set() and status in (-signal.SIGTERM, 128 + signal.SIGTERM)
                return {"interrupted": None} if interrupted else {"error": f"exit status {status}: {tail(errors)}"}
            return last

    def stop(self) -> None:
        """Ask it to save and end."""
        self._stopped.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def _follow(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        last: dict[str, Any] = {}
        assert process.stdout is not None
        for line in process.stdout:
            try:
                last = json.loads(line)
            except ValueError:
                continue  # something else that printed
            if "step" in last:
                self.progress.stepped(self.job.label, last["step"], last["note"])
            elif "warning" in last:
                self.progress.warned(self.job.label, last["warning"])
        return last


def tail(errors: IO[str]) -> str:
    """The last line that says something."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
