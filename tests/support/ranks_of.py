"""A script run in several processes, one for each rank."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def run_ranks(worker: Path, folder: Path, world: int, *arguments: str, environment: Mapping[str, str]) -> None:
    """`python worker folder rank world arguments`; fails with what the processes said if one does."""
    running = [
        subprocess.Popen(
            [sys.executable, str(worker), str(folder), str(rank), str(world), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        for rank in range(world)
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * world, "\n".join(said)
