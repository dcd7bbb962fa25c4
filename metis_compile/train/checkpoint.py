"""A run on disk: written whole or not at all, read with a clear word when it does not fit."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metis_compile.measure.folder import writing
from metis_compile.train.errors import TrainError
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import Trainer

__all__ = ["FILE", "fitting", "load", "load_of", "read_settings", "restore", "save"]

FILE = "checkpoint.pt"
FORMAT = 2
PARTS = {"settings": dict, "text": str, "policies": dict, "step": int, "learners": dict}


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
        with writing(path, TrainError):
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except RuntimeError as error:  # torch's own, of a file that takes less than it was given
        raise TrainError(f"cannot write {path}: {str(error).splitlines()[0][:120]}") from None
    finally:
        with suppress(OSError):
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
    for name, kind in PARTS.items():
        if not isinstance(state.get(name), kind):
            found = f"of type {type(state[name]).__name__}" if name in state else "missing"
            raise _unfit(path, f"its {name} must be of type {kind.__name__}, and is {found}")
    return state


def read_settings(folder: Path) -> Settings:
    """The settings of the run in ``folder``."""
    return _settings(load(folder), folder / FILE)


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
        if name not in state["learners"]:
            raise _unfit(path, f"it has no learner {name!r}")
        with fitting(path):
            trainer.load_state_dict(state["learners"][name], state["step"])
    return state["step"]


def load_of(folder: Path, *, settings: Settings, text: str) -> dict[str, Any]:
    """What :func:`save` wrote. Raises TrainError if it is of a run with other settings or another text."""
    state = load(folder)
    path = folder / FILE
    differences = _settings(state, path).differences(settings)
    if differences:
        raise TrainError(f"{path} is of a run with {', '.join(differences)}: it cannot go on with these settings")
    if state["text"] != text:
        raise TrainError(f"{path} is of a run on another text (another Python or a changed file)")
    return state


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Within: what a part of the checkpoint ``path`` raises, where it is missing or another thing, is a TrainError."""
    try:
        yield
    except TrainError:
        raise
    except KeyError as error:
        raise _unfit(path, f"it has no {error}") from None
    except Exception as error:  # torch and a conditioning's state raise many kinds for a part that does not fit
        raise _unfit(path, " ".join(str(error).split())[:200] or type(error).__name__) from None


def _settings(state: dict[str, Any], path: Path) -> Settings:
    missing = [name for name in Settings.names() if name not in state["settings"]]
    if missing:
        raise _unfit(path, f"its settings lack {', '.join(missing)}")
    try:
        return Settings.from_dict(state["settings"])
    except TrainError as error:
        raise _unfit(path, str(error)) from None


def _unfit(path: Path, why: str) -> TrainError:
    return TrainError(f"{path} cannot be resumed ({why}): start again without --resume")
