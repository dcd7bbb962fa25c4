"""Lightning's Trainer with metis: a module that is compiled in `configure_model`, saved, and resumed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_bases import POLICY
from torch import Tensor
from trainer_runs import Regression, dataset

import metis_compile
from metis_compile import Policy

lightning = pytest.importorskip("lightning")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from metis_compile.integrations.lightning import MetisCallback  # noqa: E402

pytestmark = pytest.mark.usefixtures("eagerly")


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net: Any = Regression()

    def configure_model(self) -> None:
        if isinstance(self.net, Regression):  # it is called more than once
            self.net = torch.compile(self.net, backend="metis", dynamic=True)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(**batch)["loss"]

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self.log("loss", self.net(**batch)["loss"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(
    folder: Path, policy: Policy | str = POLICY, resume: Path | None = None, epochs: int = 2
) -> tuple[Module, list[str]]:
    """As a new process would: two full batches and a short one in each epoch, and validation after it."""
    torch.compiler.reset()
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    said: list[str] = []
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            MetisCallback(policy, say=said.append),
            ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1),
        ],
    )
    data: Any = dataset()
    trainer.fit(
        module,
        torch.utils.data.DataLoader(data, batch_size=9),
        torch.utils.data.DataLoader(data[:4], batch_size=4),
        ckpt_path=resume,
        weights_only=True,
    )
    return module, said


def outcome(module: Module) -> dict[str, Tensor]:
    found = dict(module.named_parameters())
    for key, parts in metis_compile.state_dict(module).items():
        found |= {f"{key}.{part}": value for part, value in parts.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def test_a_run_that_resumes_is_the_uninterrupted_one(tmp_path: Path) -> None:
    module, said = fit(tmp_path)
    whole = outcome(module)
    assert "net.up.weight#0.forward" in whole
    assert said == ["metis: policy <text>: 5 of 5 products rewritten in 1 graph"]
    for step in (2, 3):  # before the short batch, and at the end of an epoch
        resumed = outcome(fit(tmp_path, resume=tmp_path / f"step={step}.ckpt")[0])
        assert resumed.keys() == whole.keys()
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == [], step


def test_what_cannot_be_put_back_is_said(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1)
    _, said = fit(tmp_path / "other", "fp8", resume=tmp_path / "step=2.ckpt", epochs=1)
    assert "is of the policy" in said[0]
    assert said[1] == "metis: policy fp8.toml: 5 of 5 products rewritten in 1 graph"
