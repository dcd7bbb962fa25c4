"""Accelerate takes "metis" by name, and says what it has changed if it does not."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import nn

import metis_compile
from metis_compile.integrations.accelerate import register

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_name_is_a_backend() -> None:
    register()
    assert DynamoBackend("METIS") is DynamoBackend("METIS")
    assert "METIS" in DynamoBackend
    assert DynamoBackend("METIS") != DynamoBackend.NO
    plugin = TorchDynamoPlugin(backend="metis", options={"policy": "fp8"})
    assert plugin.to_kwargs() == {"backend": "metis", "options": {"policy": "fp8"}}
    with pytest.raises(ValueError, match="'MATIS' is not a valid DynamoBackend"):
        DynamoBackend("MATIS")


def test_an_enum_that_knows_the_name_is_left_alone() -> None:
    class Newer(enum.StrEnum):
        METIS = "METIS"

    register(Newer)
    assert "_missing_" not in vars(Newer)


@pytest.mark.parametrize("changed", [("no", "inductor"), enum.Enum("Numbers", "NO INDUCTOR")], ids=["tuple", "numbers"])
def test_an_accelerate_that_has_changed_is_said(changed: object) -> None:
    with pytest.raises(ImportError, match=r"accelerate \d.* no enum of texts.*model.compile\(backend=\"metis\"\)"):
        register(changed)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("how", ["dynamo_backend", "dynamo_plugin", "environment"])
def test_a_model_is_compiled(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {"cpu": True}
    monkeypatch.setenv("METIS_POLICY", "fp8")
    if how == "dynamo_backend":
        given["dynamo_backend"] = "metis"
    elif how == "dynamo_plugin":
        given["dynamo_plugin"] = TorchDynamoPlugin(backend="metis", options={"policy": "fp8"})
    else:
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "metis")
    accelerator = Accelerator(**given)
    model = nn.Linear(32, 32, bias=False)
    prepared = accelerator.prepare(model)
    with metis_compile.capture() as captured:
        accelerator.backward(prepared(torch.randn(16, 32)).sum())
    sites = [site for graph in captured.graphs for site in graph.sites]
    assert [site.reason for site in sites] == [None, None]  # fprop and wgrad
    assert model.weight.grad is not None


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_launcher() -> None:
    """The script is started with "metis" as its backend, and the launcher itself does not know it."""
    script = "examples/accelerate_loop.py"
    launch = ("launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no")
    refused = run("-m", "accelerate.commands.accelerate_cli", *launch, "--dynamo_backend", "metis", script)
    assert "invalid choice: 'metis'" in refused.stderr
    print_backend = "tests/support/print_dynamo_backend.py"
    taken = run("-m", "metis_compile.integrations.accelerate", *launch, "--dynamo_backend", "metis", print_backend)
    assert taken.stdout.strip() == "METIS", taken.stderr
