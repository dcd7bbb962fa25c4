"""What a worker warns of is said by the process that started it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from metis_compile.measure.progress import JobProgress
from metis_compile.measure.schedule import Job, run_jobs

WORKER = """
import logging
import warnings
from metis_compile.measure.worker_protocol import emit, emits_warnings

with emits_warnings(UserWarning):
    warnings.warn("rule 1 matches nothing", UserWarning)
    warnings.warn("nobody reads this", DeprecationWarning)
    logging.getLogger("metis_compile").warning("half is left high")
emit(done=True)
"""


@pytest.mark.parametrize("count", [1, 2])
def test_it_is_said_once(tmp_path: Path, count: int) -> None:
    (tmp_path / "warning_worker.py").write_text(WORKER)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    jobs = [
        Job(label=f"job {i}", worker="warning_worker", request={}, steps=1, threads=1, environment={"PYTHONPATH": path})
        for i in range(count)
    ]
    text = io.StringIO()
    with JobProgress(Console(file=text), count) as progress:
        results, failures, _ = run_jobs(jobs, at_once=1, progress=progress)
    assert len(results) == count
    assert failures == []
    assert text.getvalue().count("warning: rule 1 matches nothing") == 1
    assert text.getvalue().count("job 0: warning: half is left high") == 1
    assert "nobody" not in text.getvalue()
