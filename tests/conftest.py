"""What every test starts from: the graph verifier on, fresh Dynamo caches, a fixed seed."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator

import pytest
import torch

pytest_plugins = ["interpreted_tests", "long_tail", "on_gpu", "policy_files", "triton_on_cpu"]

# pytest puts its handlers on loggers that do not propagate. On this one a handler means that TORCH_TRACE is asked for:
# torch and we would print every graph after every pass, a third of what compiling takes.
logging.getLogger("torch.__trace").propagate = True


def pytest_collection_finish() -> None:
    """Collects garbage more rarely than Python does, and not through all that was imported: a tenth of compiling."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("METIS_VERIFY", "1")
    monkeypatch.delenv("METIS_POLICY", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)  # the width that tables print in
    torch.manual_seed(0)
    given = {name for name in os.environ if name.startswith("ACCELERATE_")}
    yield
    torch.compiler.reset()
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") and name not in given]:
        del os.environ[name]  # TrainingArguments sets them for the process
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None:  # one process has one mixed precision, whoever asked for it first
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)
