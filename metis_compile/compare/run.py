"""One arm trained from one seed, in this process; it goes on from its checkpoint if it was interrupted."""

import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from metis_compile import __version__
from metis_compile.compare.record import Record, write
from metis_compile.compare.run_config import BASELINE, RunConfig
from metis_compile.measure.folder import check_folder
from metis_compile.measure.interrupt import StopRequest
from metis_compile.train import checkpoint, corpus
from metis_compile.train.determinism import deterministic
from metis_compile.train.errors import TrainError
from metis_compile.train.loop import VALIDATION_BATCHES, Interrupted
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import Trainer

__all__ = ["identity", "record_path", "run_branch", "run_once"]

CHECKPOINT_EVERY = 100  # steps
Stepped = Callable[[int, float], None]  # given the number of steps done and the last loss


def identity(settings: Settings, branch: int = 0) -> dict[str, object]:
    """What the trials of one comparison have in common."""
    same = {name: value for name, value in asdict(settings).items() if name not in ("policy", "seed")}
    return same | ({"branch": branch} if branch else {})


def record_path(out: Path, arm: RunConfig, seed: int) -> Path:
    """Where the record of a trial lies."""
    return out / "trials" / f"{arm.name}-seed{seed}.json"


def _branch_folder(out: Path, seed: int) -> Path:
    """Where the checkpoint lies that all arms of a seed go on from."""
    return out / "branches" / f"seed{seed}"


def run_once(arm: RunConfig, settings: Settings, out: Path, stepped: Stepped, branch: int = 0) -> Record | Interrupted:
    """Train ``arm`` with the seed in ``settings`` and write its record under ``out``.

    stepped: called after each step. branch: how many steps full precision has trained for it, as :func:`run_branch`
    left them. The caller's random state is left as it was. Raises TrainError if it cannot start or go on, PolicyError
    for a bad policy.
    """
    settings = replace(settings, policy=arm.policy)
    text = _corpus(settings)
    branched = f"-branch{branch}" if branch else ""
    folder = _made(out / "unfinished" / f"{arm.name}-seed{settings.seed}{branched}")
    with _repeatable(settings):
        trainer = Trainer(arm.variant(), settings)
        start = 0
        if branch and not (folder / checkpoint.FILE).exists():
            start = _go_on(
                trainer, _branch_folder(out, settings.seed), replace(settings, policy=BASELINE), text, branch
            )
        interrupted = _train(trainer, settings, text, folder, start, settings.steps, stepped)
        if interrupted is not None:
            return interrupted
        record = _finished(arm, settings, text, trainer, branch)
    write(record_path(out, arm, settings.seed), record)
    shutil.rmtree(folder)
    return record


def run_branch(settings: Settings, out: Path, stepped: Stepped, branch: int) -> Interrupted | None:
    """Train full precision for the first ``branch`` steps and leave the checkpoint under ``out``.

    The rest as for :func:`run_once`.
    """
    arm = RunConfig(text=BASELINE)
    settings = replace(settings, policy=arm.policy)
    text = _corpus(settings)
    folder = _made(_branch_folder(out, settings.seed))
    with _repeatable(settings):
        return _train(Trainer(arm.variant(), settings), settings, text, folder, 0, branch, stepped)


def _train(
    trainer: Trainer, settings: Settings, text: corpus.Corpus, folder: Path, done: int, until: int, stepped: Stepped
) -> Interrupted | None:
    """Steps ``done`` to ``until``, or from the checkpoint in ``folder``, which is written now and then."""
    learners = {"arm": trainer}
    saved = None
    with StopRequest() as stop:
        if (folder / checkpoint.FILE).exists():
            saved = done = checkpoint.restore(folder, settings=settings, text=text.digest, learners=learners)
        while done < until:
            tokens, targets = text.batch(seed=settings.seed, step=done, batch=settings.batch, context=settings.context)
            try:
                loss = trainer.step(done, tokens.to(settings.device), targets.to(settings.device))
            except (Exception, KeyboardInterrupt) as error:
                # A step cut off half way must not be saved.
                if stop.signal is None:
                    raise
                return Interrupted(signal=stop.signal, step=done, saved=saved, cut_off=type(error).__name__)
            done += 1
            stepped(done, loss)
            if stop or done % CHECKPOINT_EVERY == 0 or done == until:
                checkpoint.save(folder, settings=settings, text=text.digest, step=done, learners=learners)
                saved = done
            if stop.signal is not None:
                return Interrupted(signal=stop.signal, step=done, saved=saved)
    return None


def _go_on(trainer: Trainer, folder: Path, settings: Settings, text: corpus.Corpus, branch: int) -> int:
    """Put the learner where the baseline's checkpoint is; returns its step."""
    state = checkpoint.load_of(folder, settings=settings, text=text.digest)
    if state["step"] != branch:
        raise TrainError(f"{folder} has done {state['step']} steps and not {branch}: delete it to run it again")
    with checkpoint.fitting(folder / checkpoint.FILE):
        trainer.go_on_from(state["learners"]["arm"])
    return branch


def _corpus(settings: Settings) -> corpus.Corpus:
    text = corpus.load_library() if settings.text is None else corpus.load_file(Path(settings.text).expanduser())
    text.require(settings.context)
    return text


def _made(folder: Path) -> Path:
    check_folder(folder, TrainError)
    return folder


@contextmanager
def _repeatable(settings: Settings) -> Iterator[None]:
    """Within: results can be repeated, and the caller's random state is not touched."""
    devices = [torch.device(settings.device)] if settings.device != "cpu" else []
    with torch.random.fork_rng(devices=devices), deterministic(settings.device):
        yield


def _finished(arm: RunConfig, settings: Settings, text: corpus.Corpus, trainer: Trainer, branch: int) -> Record:
    """The record of a trial after its last step."""
    history = trainer.history
    assert history.saved_bytes is not None
    assert history.compile_seconds is not None
    batches = text.validation_batches(count=VALIDATION_BATCHES, batch=settings.batch, context=settings.context)
    return Record(
        arm=arm.text,
        seed=settings.seed,
        settings=identity(settings, branch),
        text=text.digest,
        policy=trainer.variant.digest,
        losses=list(history.losses),
        validation_loss=trainer.validate(batches),
        saved_bytes=history.saved_bytes,
        step_seconds=history.median_seconds(),
        compile_seconds=history.compile_seconds,
        threads=torch.get_num_threads(),
        versions={"metis_compile": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )
