"""A callback for Lightning's Trainer: the policy, what is kept across steps, and what is on.

    trainer = lightning.Trainer(callbacks=[MetisCallback("nvfp4")], ...)

The module compiles itself, or a part of it, in `configure_model`:

    self.net = torch.compile(self.net, backend="metis")
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from metis_compile.integrations.first_step import FirstStep
from metis_compile.integrations.kept_state import restore, saved
from metis_compile.integrations.run_policy import RunPolicy
from metis_compile.monitoring.monitor import Monitor, monitor
from metis_compile.policy import Policy, Schedule
from metis_compile.schedule import advance

KEY = "metis"  # in a checkpoint


class MetisCallback(Callback):
    """Sets the policy, saves and restores what is kept across steps, and says once what is on.

    policy: a preset's name, a path, a `Policy` or a `Schedule`, whose stages follow the run's steps; None for what
    METIS_POLICY says, or else the default. It is put into the environment as METIS_POLICY, for this process and those
    that it starts; what an option of `torch.compile` names must be the same. say: what is called with a line of text
    to show, in the first process.

    What is kept across steps is in every checkpoint, under "metis"; a run that resumes goes on as it would have. Raises
    PolicyError for a mistake in the policy, here or, for METIS_POLICY, when `fit` begins; ValueError where METIS_POLICY
    or an option of `torch.compile` names another policy, and for the checkpoint of another model.
    """

    def __init__(
        self, policy: str | os.PathLike[str] | Policy | Schedule | None = None, *, say: Callable[[str], None] = print
    ) -> None:
        self._policy = RunPolicy(policy)
        self._say = say
        self._first_step: FirstStep | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._policy.apply()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = FirstStep()
        self._first_step.begin()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        steps = trainer.estimated_stepping_batches  # infinite where nothing ends the run
        advance(pl_module, trainer.global_step, steps=int(steps) if math.isfinite(steps) else None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._first_step is not None:
            told = self._first_step.end(self._policy.given)
            self._first_step = None
            if trainer.is_global_zero:
                self._say(told)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = saved(pl_module, self._policy.policy)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        told: str | None = (
            "metis: the checkpoint was saved without this callback: what is kept across steps starts anew"
        )
        if KEY in checkpoint:
            told = restore(pl_module, checkpoint[KEY], self._policy.policy, f"the checkpoint's {KEY!r}")
        if told is not None and trainer.is_global_zero:
            self._say(told)


class MonitorCallback(Callback):
    """Records statistics of the module's quantized operands while it trains: see `metis_compile.monitor`.

        trainer = lightning.Trainer(callbacks=[MonitorCallback(every=50, to="statistics.jsonl")], ...)

    Takes what `monitor` takes but the model and the first step, and raises what it raises when training begins. A run
    that resumes adds to its file.
    """

    def __init__(self, *, every: int = 50, to: Any = None, **options: Any) -> None:
        self._options = {"every": every, "to": to, **options}
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        self.monitor = monitor(pl_module, start=trainer.global_step, **self._options)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.monitor is not None and trainer.global_step != self.monitor.step:  # else it accumulates
            self.monitor.advance(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
