"""One arm trained from one seed, in this process; it goes on from its checkpoint if it was interrupted."""

import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from metis_compile import __version__
from metis_compile.compare.arm import Arm
from metis_compile.compare.record import Record, write
from metis_compile.train import checkpoint, corpus
from metis_compile.train.determinism import deterministic
from metis_compile.train.errors import TrainError
from metis_compile.train.interrupt import StopRequest
from metis_compile.train.learner import Learner
from metis_compile.train.loop import VALIDATION_BATCHES, Interrupted
from metis_compile.train.settings import Settings

__all__ = ["identity", "record_path", "run_trial"]

CHECKPOINT_EVERY = 100  # steps


def identity(settings: Settings) -> dict[str, object]:
    """What the trials of one comparison have in common."""
    return {name: value for name, value in asdict(settings).items() if name not in ("policy", "seed")}


def record_path(out: Path, arm: Arm, seed: int) -> Path:
    """Where the record of a trial lies."""
    return out / "trials" / f"{arm.name}-seed{seed}.json"


def run_trial(arm: Arm, settings: Settings, out: Path, stepped: Callable[[int, float], None]) -> Record | Interrupted:
    """Train ``arm`` with the seed in ``settings`` and write its record under ``out``.

    stepped: called with the number of steps done and the last loss. The caller's random state is left as it was.
    Raises TrainError if it cannot start or go on, PolicyError for a bad policy.
    """
    settings = replace(settings, policy=arm.policy)
    text = corpus.load_library() if settings.text is None else corpus.load_file(Path(settings.text).expanduser())
    text.require(settings.context)
    folder = out / "unfinished" / f"{arm.name}-seed{settings.seed}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"cannot make the folder {folder}: {error.strerror}") from None
    devices = [torch.device(settings.device)] if settings.device != "cpu" else []
    with torch.random.fork_rng(devices=devices), deterministic(settings.device), StopRequest() as stop:
        learners = {"arm": Learner(arm.variant(), settings)}
        done = 0
        if (folder / checkpoint.FILE).exists():
            done = checkpoint.restore(folder, settings=settings, text=text.digest, learners=learners)
        saved = done or None
        while done < settings.steps:
            tokens, targets = text.batch(seed=settings.seed, step=done, batch=settings.batch, context=settings.context)
            try:
                loss = learners["arm"].step(done, tokens.to(settings.device), targets.to(settings.device))
            except (Exception, KeyboardInterrupt) as error:
                # A step cut off half way must not be saved.
                if stop.signal is None:
                    raise
                return Interrupted(signal=stop.signal, step=done, saved=saved, cut_off=type(error).__name__)
            done += 1
            stepped(done, loss)
            if stop or done % CHECKPOINT_EVERY == 0 or done == settings.steps:
                checkpoint.save(folder, settings=settings, text=text.digest, step=done, learners=learners)
                saved = done
            if stop.signal is not None:
                return Interrupted(signal=stop.signal, step=done, saved=saved)
        record = finished(arm, settings, text, learners["arm"])
    write(record_path(out, arm, settings.seed), record)
    shutil.rmtree(folder)
    return record


def finished(arm: Arm, settings: Settings, text: corpus.Corpus, learner: Learner) -> Record:
    """The record of a trial after its last step."""
    history = learner.history
    assert history.saved_bytes is not None
    assert history.compile_seconds is not None
    batches = text.validation_batches(count=VALIDATION_BATCHES, batch=settings.batch, context=settings.context)
    return Record(
        arm=arm.text,
        seed=settings.seed,
        settings=identity(settings),
        text=text.digest,
        policy=learner.variant.digest,
        losses=list(history.losses),
        validation_loss=learner.validate(batches),
        saved_bytes=history.saved_bytes,
        step_seconds=history.median_seconds(),
        compile_seconds=history.compile_seconds,
        threads=torch.get_num_threads(),
        versions={"metis_compile": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )
