"""Runs of Hugging Face's Trainer with a model of two linears, whose policy keeps bases, and the fixture they share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kept_bases import POLICY
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import metis_compile.backend
import metis_compile.integrations.accelerate
from metis_compile.inspection.dry_run import run_eagerly
from metis_compile.integrations.transformers import MetisCallback
from metis_compile.policy import Policy, Schedule


class Regression(nn.Module):
    """Returns what Trainer expects: a loss, and predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.down(F.gelu(self.up(x)))
        return {"loss": F.mse_loss(y, labels), "logits": y}


def dataset(count: int = 24) -> list[dict[str, Tensor]]:
    x = torch.randn(count, 32, generator=torch.Generator().manual_seed(1))
    return [{"x": row, "labels": row.sin()} for row in x]


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 9,  # of 24: two full batches, and one of 6
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "save_steps": 1,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**settings | given)


def train(
    folder: Path,
    *,
    by_name: bool = False,
    dynamic: bool | None = None,
    callback: bool = True,
    policy: Policy | Schedule = POLICY,
    resume: Path | None = None,
    **given: Any,
) -> Trainer:
    """As a new process would. by_name: `torch_compile_backend="metis"`, otherwise `model.compile(backend="metis")`."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Regression()
    if by_name:
        given["torch_compile_backend"] = "metis"
    else:
        model.compile(backend="metis", dynamic=dynamic, options=None if callback else {"policy": policy})
    callbacks = [MetisCallback(policy, say=lambda _: None)] if callback else []
    data = dataset()
    trainer = Trainer(model, arguments(folder, **given), train_dataset=data, eval_dataset=data[:4], callbacks=callbacks)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def outcome(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters, what the optimizer has of them, and what is kept across steps."""
    found = dict(trainer.model.named_parameters())
    for number, of_one in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{number}.{name}": value for name, value in of_one.items()}
    for key, parts in metis_compile.state_dict(trainer.model).items():
        found |= {f"{key}.{part}": value for part, value in parts.items()}
    return {name: value.detach().clone() for name, value in found.items()}


@pytest.fixture
def eagerly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend named "metis" with everything but Inductor's code generation; METIS_POLICY is put back."""
    compile_graph = functools.partial(metis_compile.backend.compile_graph, inner_compile=run_eagerly)
    monkeypatch.setattr(metis_compile.backend, "compile_graph", compile_graph)
    monkeypatch.setenv("METIS_POLICY", "")
    torch.compiler.reset()
    yield
    torch.compiler.reset()
