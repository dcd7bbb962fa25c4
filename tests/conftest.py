"""What every test starts from: the graph verifier on, fresh Dynamo caches, a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest_plugins = ["interpreted_tests", "on_gpu", "policy_files", "triton_on_cpu"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("METIS_VERIFY", "1")
    monkeypatch.delenv("METIS_POLICY", raising=False)
    torch.manual_seed(0)
    yield
    torch.compiler.reset()
