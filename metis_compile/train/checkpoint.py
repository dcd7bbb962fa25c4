"""A run on disk: written whole or not at all, read with a clear word when it does not fit."""

import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metis_compile.train.errors import TrainError
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import Trainer

__all__ = ["FILE", "load", "load_of", "read_settings", "restore", "save"]

FILE = "checkpoint.pt"
FORMAT = 2


def save(folder: Path, *, settings: Settings, text: str, step: int, learners: dict[str, Trainer]) -> Path:
    """Write the state after ``step`` steps to ``folder``; an interruption leaves the file before it intact.

    ``text`` is the corpus digest. No generator's state is in it: every random stream starts from a seed
    derived from the run's seed and the step's number.
    """
    state = {
        "format": FORMAT,
        "settings": asdict(settings),
        "text": text,
        "policies": {name: trainer.variant.digest for name, trainer in learners.items()},
        "step": step,
        "learners": {name: trainer.state_dict() for name, trainer in learners.items()},
    }
    path = folder / FILE
    partial = folder / f"{FILE}.partial"
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise TrainError(f"cannot write {path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(folder: Path) -> dict[str, Any]:
    """What :func:`save` wrote. Raises TrainError if it is missing, damaged or of another format."""
    path = folder / FILE
    if not path.is_file():
        raise TrainError(f"there is no {path} to resume from: leave out --resume to start a new run")
    try:
        # torch.load does not compare the checksums of the zip that it reads.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"bad checksum in {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise many kinds for a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainError(
            f"{path} is damaged and cannot be resumed ({reason[:120]}): start again without --resume"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainError(f"{path} was not written by this version of metis train: start again without --resume")
    return state


def read_settings(folder: Path) -> Settings:
    """The settings of the run in ``folder``."""
    return Settings.from_dict(load(folder)["settings"])


def restore(folder: Path, *, settings: Settings, text: str, learners: dict[str, Trainer]) -> int:
    """Put the learners where the checkpoint left them; returns the number of steps done.

    Raises TrainError if the checkpoint is of another run: other settings, another text or a changed policy.
    """
    state = load_of(folder, settings=settings, text=text)
    path = folder / FILE
    for name, trainer in learners.items():
        if state["policies"].get(name) != trainer.variant.digest:
            raise TrainError(f"{path} is of a run whose policy {settings.policy!r} read otherwise: it was changed")
    for name, trainer in learners.items():
        trainer.load_state_dict(state["learners"][name])
    return state["step"]


def load_of(folder: Path, *, settings: Settings, text: str) -> dict[str, Any]:
    """What :func:`save` wrote. Raises TrainError if it is of a run with other settings or another text."""
    state = load(folder)
    path = folder / FILE
    differences = Settings.from_dict(state["settings"]).differences(settings)
    if differences:
        raise TrainError(f"{path} is of a run with {', '.join(differences)}: it cannot go on with these settings")
    if state["text"] != text:
        raise TrainError(f"{path} is of a run on another text (another Python or a changed file)")
    return state
