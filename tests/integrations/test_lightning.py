"""Lightning's Trainer with metis: a module that is compiled in `configure_model`, saved, and resumed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_bases import POLICY
from torch import Tensor
from torch.utils.data import default_collate
from trainer_runs import Regression, dataset

import metis_compile
from metis_compile import Policy

lightning = pytest.importorskip("lightning")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from metis_compile.integrations.lightning import MetisCallback, MonitorCallback  # noqa: E402
from metis_compile.monitoring.reading import read_run  # noqa: E402

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


class Batches:
    """A loader that says where it is, as Lightning asks for to resume within an epoch."""

    def __init__(self, count: int, size: int) -> None:
        data = dataset(count)
        self.batches = [default_collate(data[i : i + size]) for i in range(0, count, size)]
        self.place = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for place in range(self.place, len(self)):
            self.place = (place + 1) % len(self)
            yield self.batches[place]

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


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
            ModelCheckpoint(folder, filename="end-{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
        ],
    )
    trainer.fit(
        module,
        Batches(24, 9),
        Batches(4, 4),
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
    assert "net.up.weight.activation" in whole
    assert said == ["metis: policy <text>: 5 of 5 products rewritten in 1 graph"]
    for step in ("step=1", "step=2", "end-epoch=0"):  # within an epoch, before its short batch, and at its end
        resumed = outcome(fit(tmp_path / "resumed", resume=tmp_path / f"{step}.ckpt")[0])
        assert resumed.keys() == whole.keys()
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == [], step


def test_what_cannot_be_put_back_is_said(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1)
    _, said = fit(tmp_path / "other", "fp8", resume=tmp_path / "step=2.ckpt", epochs=1)
    assert "is of the policy" in said[0]
    assert said[1] == "metis: policy fp8.toml: 2 of 5 products rewritten in 1 graph"  # the last linear is a head


def test_statistics_while_it_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback = MonitorCallback(every=2, to=tmp_path / "statistics.jsonl")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=5,
        accumulate_grad_batches=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[MetisCallback("nvfp4"), callback],
    )
    trainer.fit(Module(), Batches(18, 9))
    records = read_run(tmp_path / "statistics.jsonl").records
    assert sorted(records) == [0, 2, 4]
    assert {r["site"] for r in records[4].values()} == {"net.up"}
    assert callback.monitor is not None
    assert not callback.monitor.is_sampling  # it is closed
