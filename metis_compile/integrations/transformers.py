"""A callback for Hugging Face's Trainer (and trl's): the policy, what is kept across steps, and what is on.

    trainer = Trainer(model, args, callbacks=[MetisCallback("nvfp4")], ...)

The model itself is compiled by `model.compile(backend="metis")` before that, or by
`TrainingArguments(torch_compile_backend="metis")` after `import metis_compile.integrations.accelerate`.
"""

from __future__ import annotations

import os
import re
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
PROCESSES = "processes"  # in a file: how many of them saved


class MetisCallback(TrainerCallback):
    """Sets the policy, saves and restores what is kept across steps, and says once what is on.

    policy: a preset's name, a path, a `Policy` or a `Schedule`, whose stages follow the run's steps; None for what
    METIS_POLICY says, or else the default. It is put into the environment as METIS_POLICY, for this process and those
    that it starts; what an option of `torch.compile` names must be the same. resume_from: the checkpoint that training
    resumes from, where it is neither `args.resume_from_checkpoint` nor in `args.output_dir`: Trainer does not tell its
    callbacks. say: what is called with a line of text to show, in each node's first process.

    Every checkpoint gets a file metis_state.pt (in a distributed run metis_state_RANK.pt, one for each process), which
    is read before the first step of a run that resumes: it goes on as it would have. On another number of processes,
    process r reads the file of process r modulo their number then. Raises PolicyError for a mistake
    in the policy, here or, for METIS_POLICY, when the Trainer is made; ValueError where METIS_POLICY or an option of
    `torch.compile` names another policy, where the checkpoint that a run resumes from is not found, where its file is
    of another model, and where files of some processes are missing.
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
        torch.save({**saved(model, self._policy.policy), PROCESSES: args.world_size}, partial)
        partial.replace(folder / _file(args))
        if args.process_index == 0:  # what a run on another number of processes left there
            for path in _files(folder):
                rank = _rank(path)
                if (rank is None) != (args.world_size == 1) or (rank is not None and rank >= args.world_size):
                    path.unlink()

    def _restore(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        folder = self._checkpoint(args, state)
        path = _file_to_read(folder, args)
        told: str | None
        if path is None:
            told = f"metis: there is no {folder / _file(args)}: what a policy keeps across steps starts anew"
        else:
            given = torch.load(path, weights_only=True)
            told = restore(model, given, self._policy.policy, str(path))
            processes = given.get(PROCESSES, args.world_size)
            if told is None and processes != args.world_size:
                told = (
                    f"metis: {folder} is of {processes} processes, and this run has {args.world_size}: process r goes "
                    f"on with what process r modulo {processes} kept across steps"
                )
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


def _files(folder: Path) -> list[Path]:
    """What the processes of a run saved in a checkpoint."""
    return [path for path in folder.glob("metis_state*.pt") if path.name == FILE or _rank(path) is not None]


def _rank(path: Path) -> int | None:
    """The process that saved a file; None for the only one of its run."""
    found = re.fullmatch(r"metis_state_(\d+)\.pt", path.name)
    return int(found[1]) if found is not None else None


def _file_to_read(folder: Path, args: TrainingArguments) -> Path | None:
    """What this process goes on with: what it saved itself, or another where fewer did; None where none did.

    Raises ValueError where the file that it needs is not here, and others are: on another node, perhaps.
    """
    own = folder / _file(args)
    files = {_rank(path) or 0: path for path in _files(folder)}  # that of one process is as of the first
    if own.exists() or not files:
        return own if own.exists() else None
    given = torch.load(next(iter(files.values())), weights_only=True)
    needed = args.process_index % (given.get(PROCESSES, len(files)) if isinstance(given, dict) else len(files))
    if needed not in files:
        raise ValueError(
            f"metis: process {args.process_index} goes on with what process {needed} kept across steps, and {folder} "
            f"has files of {', '.join(map(str, sorted(files)))} alone: copy them all there, or remove them, and bases "
            "start anew"
        )
    return files[needed]
