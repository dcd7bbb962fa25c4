import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metis_compile.compare import comparison, worker
from metis_compile.measure.schedule import Failure, Job
from metis_compile.train.settings import Settings

TINY = {"steps": 6, "width": 16, "layers": 1, "heads": 2, "context": 16, "batch": 2}


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    path = tmp_path / "text.txt"
    path.write_text("all work and no play makes jack a dull boy. " * 200)
    return lambda **changes: Settings(**({"text": str(path), **TINY} | changes))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in the processes started from here, torch.compile does nothing."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run here, one after the other, and torch.compile does nothing."""

    def here(jobs: list[Job], **how: Any) -> tuple[dict[str, Any], list[Failure], None]:
        for job in jobs:
            assert worker.main(json.dumps(job.request)) == 0
        return {job.label: True for job in jobs}, [], None

    monkeypatch.setattr(torch, "compile", lambda model, **how: model)
    monkeypatch.setattr(comparison, "run_jobs", here)
    monkeypatch.setattr(worker, "emit", lambda **values: None)
