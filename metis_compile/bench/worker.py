"""A process that measures one thing: ``python -m metis_compile.bench.worker JSON``.

It writes a JSON object a line to stdout: {"step", "note"} after each step, {"warning"} for what is to be known of the
policy, then {"done"} or {"error"}.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from metis_compile.bench import gemm, memory, quantize, start, step
from metis_compile.bench.errors import BenchError
from metis_compile.measure.worker_protocol import emit, emits_warnings
from metis_compile.naming import PolicyWarning
from metis_compile.policy import PolicyError
from metis_compile.train.errors import TrainError
from metis_compile.train.settings import Settings

__all__ = ["KINDS", "main"]

# Each is given the candidate, the settings if any, what to call with the number of steps done, and the rest of the
# request.
KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "step": step.measure,
    "start": start.measure,
    "memory": memory.measure,
    "gemm": gemm.measure,
    "quantize": quantize.measure,
}


def main(text: str) -> int:
    """Do what the JSON object ``text`` says; returns the exit status."""
    request = json.loads(text)
    kind, candidate = request.pop("kind"), request.pop("candidate")
    torch.set_num_threads(request.pop("threads"))
    try:
        given = request.pop("settings")
        settings = None if given is None else Settings(**given)
        with emits_warnings(PolicyWarning):
            done = KINDS[kind](candidate, settings, lambda done: emit(step=done, note=""), **request)
        emit(done=done)
    except (BenchError, TrainError, PolicyError) as error:
        emit(error=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
