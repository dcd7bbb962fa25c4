"""A process that makes one record: ``python -m metis_compile.compare.worker JSON``.

A run of its own for each leaves nothing behind, neither memory nor compiled code, that another could feel. It writes
a JSON object a line to stdout: {"step", "note"} after each step, {"warning"} for what is to be known of the policy,
then {"done"}, {"interrupted"} or {"error"}.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from metis_compile.compare.cost import measure
from metis_compile.compare.record import Record
from metis_compile.compare.run import run_branch, run_once
from metis_compile.compare.run_config import RunConfig
from metis_compile.measure.worker_protocol import emit, emits_warnings
from metis_compile.naming import PolicyWarning
from metis_compile.policy import PolicyError
from metis_compile.train.errors import TrainError
from metis_compile.train.loop import Interrupted
from metis_compile.train.settings import Settings

__all__ = ["main"]


def main(text: str) -> int:
    """Do what the JSON object ``text`` says; returns the exit status."""
    job = json.loads(text)
    arm, settings = RunConfig(text=job["arm"]), Settings(**job["settings"])
    torch.set_num_threads(job["threads"])
    try:
        if job["kind"] == "cost":
            emit(done=asdict(measure(arm, settings, job["rounds"])))
            return 0
        out, branch = Path(job["out"]), job["branch"]
        outcome: Record | Interrupted | None
        with emits_warnings(PolicyWarning):  # such as of a rule that matches nothing
            if job["kind"] == "branch":
                outcome = run_branch(settings, out, stepped, branch)
            else:
                outcome = run_once(arm, settings, out, stepped, branch)
    except (TrainError, PolicyError) as error:
        emit(error=str(error))
        return 2
    if isinstance(outcome, Interrupted):
        emit(interrupted=outcome.saved)
        return 128 + outcome.signal
    emit(done=True)
    return 0


def stepped(step: int, loss: float) -> None:
    emit(step=step, note=f"loss {loss:.4f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
