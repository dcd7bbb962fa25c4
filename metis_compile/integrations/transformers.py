"""A callback for Hugging Face's Trainer (and trl's): the policy, what is kept across steps, and what is on.

    trainer = Trainer(model, args, callbacks=[MetisCallback("nvfp4")], ...)

The model itself is compiled by `model.compile(backend="metis")` before that, or by
`TrainingArguments(torch_compile_backend="metis")` after `import metis_compile.integrations.accelerate`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from metis_compile.integrations.first_step import FirstStep
from metis_compile.integrations.kept_state import restore, saved
from metis_compile.integrations.run_policy import RunPolicy
from metis_compile.monitoring.monitor import Monitor, monitor
from metis_compile.policy import Policy, Schedule
from metis_compile.schedule import advance

FILE = "metis_state.pt"


class MetisCallback(TrainerCallback):
    """Sets the policy, saves and restores what is kept across steps, and says once what is on.

    policy: a preset's name, a path, a `Policy` or a `Schedule`, whose stages follow the run's steps; None for what
    METIS_POLICY says, or else the default. It is put into the environment as METIS_POLICY, for this process and those
    that it starts; what an option of `torch.compile` names must be the same. resume_from: the checkpoint that training
    resumes from, where it is neither `args.resume_from_checkpoint` nor in `args.output_dir`: Trainer does not tell its
    callbacks. say: what is called with a line of text to show, in each node's first process.

    Every checkpoint gets a file metis_state.pt (in a distributed run metis_state_RANK.pt, one for each process), which
    is read before the first step of a run that resumes: it goes on as it would have. Raises PolicyError for a mistake
    in the policy, here or, for METIS_POLICY, when the Trainer is made; ValueError where METIS_POLICY or an option of
    `torch.compile` names another policy, where the checkpoint that a run resumes from is not found, and where its file
    is of another model.
    """

    def __init__(
        self,
        policy: str | os.PathLike[str] | Policy | Schedule | None = None,
        *,
        resume_from: str | os.PathLike[str] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._policy = RunPolicy(policy)
        self._resume_from = resume_from
        self._say = say
        self._first_step: FirstStep | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._policy.apply()  # what is evaluated before it is trained is compiled before training begins

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        self._policy.apply()
        if state.global_step > 0:
            self._restore(args, state, model)
        self._first_step = FirstStep()
        self._first_step.begin()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        advance(model, state.global_step, steps=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._first_step is not None:
            told = self._first_step.end(self._policy.given)
            self._first_step = None
            if state.is_local_process_zero:
                self._say(told)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        folder = _folder(args, state)
        folder.mkdir(parents=True, exist_ok=True)  # another process may not have made it yet
        partial = folder / f"{_file(args)}.partial"
        torch.save(saved(model, self._policy.policy), partial)
        partial.replace(folder / _file(args))

    def _restore(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        path = self._checkpoint(args, state) / _file(args)
        if path.exists():
            told = restore(model, torch.load(path, weights_only=True), self._policy.policy, str(path))
        else:
            told = f"metis: there is no {path}: what a policy keeps across steps starts anew"
        if told is not None and state.is_local_process_zero:
            self._say(told)

    def _checkpoint(self, args: TrainingArguments, state: TrainerState) -> Path:
        """The folder that Trainer has read `state` from."""
        named = self._resume_from or args.resume_from_checkpoint
        folder = _folder(args, state)
        if isinstance(named, (str, os.PathLike)) and Path(named).is_dir():
            folder = Path(named)
        file = folder / "trainer_state.json"
        if not file.exists() or not _same(TrainerState.load_from_json(str(file)), state):
            raise ValueError(
                f"metis: training resumes at step {state.global_step} from a checkpoint that is not {folder}: name it "
                'by MetisCallback(..., resume_from="FOLDER")'
            )
        return folder


class MonitorCallback(TrainerCallback):
    """Records statistics of the model's quantized operands while it trains: see `metis_compile.monitor`.

        trainer = Trainer(model, args, callbacks=[MonitorCallback(every=50, to="statistics.jsonl")], ...)

    Takes what `monitor` takes but the model and the first step, and raises what it raises when training begins. A run
    that resumes adds to its file.
    """

    def __init__(self, *, every: int = 50, to: Any = None, **options: Any) -> None:
        self._options = {"every": every, "to": to, **options}
        self.monitor: Monitor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        self._close()
        self.monitor = monitor(model, start=state.global_step, **self._options)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.monitor is not None:
            self.monitor.advance(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _same(a: TrainerState, b: TrainerState) -> bool:
    """Whether two states are of one moment of one run."""
    return all(getattr(a, name) == getattr(b, name) for name in ("global_step", "epoch", "total_flos", "log_history"))


def _file(args: TrainingArguments) -> str:
    return FILE if args.world_size == 1 else f"metis_state_{args.process_index}.pt"
