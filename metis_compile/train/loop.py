"""A run: two models, the same batches, one step of each in turn."""

import json
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from metis_compile.html_report import ReportError, check, policy_texts, read_statistics, spectra, write
from metis_compile.measure.folder import check_folder, writing
from metis_compile.measure.interrupt import StopRequest
from metis_compile.measure.plot import check_matplotlib
from metis_compile.monitoring.monitor import monitor
from metis_compile.naming import PolicyWarning
from metis_compile.policy import Schedule
from metis_compile.train import checkpoint, corpus
from metis_compile.train.determinism import deterministic
from metis_compile.train.errors import TrainError
from metis_compile.train.page import explanations, page
from metis_compile.train.plot import draw
from metis_compile.train.progress import RunProgress
from metis_compile.train.report import Report, Side
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import Trainer
from metis_compile.train.variant import FULL_PRECISION, Variant, policy_variant

__all__ = ["Interrupted", "Options", "run"]

log = logging.getLogger("metis_compile")
VALIDATION_BATCHES = 32


@dataclass(frozen=True, kw_only=True)
class Options:
    """What does not change a run's curve."""

    out: Path  # where the checkpoint, the report and the plot go
    resume: bool = False  # go on from the checkpoint in ``out``
    checkpoint_every: int = 50  # steps
    average: int = 50  # last steps in the training loss of the report
    html: Path | None = None  # where the report goes as a page of HTML
    trust: bool = True  # whether the policy may name code, which is then imported: see Policy.load
    monitor: Path | None = None  # where statistics of the policy's operands go, as metis_compile.monitor writes them
    monitor_every: int = 50  # steps

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "average", "monitor_every"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """A run that was asked to stop."""

    signal: int
    step: int  # steps that were done
    saved: int | None  # steps that are in the checkpoint; None if this run has written none
    cut_off: str | None = None  # what ended a step half way
    unsaved: str | None = None  # why the last checkpoint could not be written


def run(
    settings: Settings,
    options: Options,
    *,
    console: Console | None = None,
    variants: tuple[Variant, Variant] | None = None,
) -> Report | Interrupted:
    """Train full precision and the policy side by side and report on both.

    ``variants`` replaces how the two models are compiled, full precision first. The caller's random state is
    left as it was. Raises TrainError if the run cannot start or resume, PolicyError for a bad policy, ReportError for a
    page that can't be written.
    """
    check_matplotlib(TrainError)
    variants = variants or (FULL_PRECISION, policy_variant(settings.policy, trust=options.trust))
    text = corpus.load_library() if settings.text is None else corpus.load_file(Path(settings.text).expanduser())
    text.require(settings.context)
    check_folder(options.out, TrainError)
    if options.html is not None:
        check(options.html)
    console = console or Console(stderr=True)
    devices = [torch.device(settings.device)] if settings.device != "cpu" else []
    with torch.random.fork_rng(devices=devices), deterministic(settings.device):
        return _Run(settings, options, text, variants, console).go()


class _Run:
    def __init__(
        self,
        settings: Settings,
        options: Options,
        text: corpus.Corpus,
        variants: tuple[Variant, Variant],
        console: Console,
    ) -> None:
        self.settings, self.options, self.text = settings, options, text
        self.learners = {
            name: Trainer(variant, settings)
            for name, variant in zip(("full_precision", "policy"), variants, strict=True)
        }
        # Read at the start: a file may change while the run lasts.
        self.policy = (variants[1].options or {}).get("policy")
        self.policy_files = [] if self.policy is None else policy_texts(self.policy, trust=options.trust)
        self.progress = RunProgress(console, settings.steps)
        self.done = 0
        self.saved: int | None = None
        self.unsaved: str | None = None  # why the last checkpoint could not be written

    def go(self) -> Report | Interrupted:
        with self.progress, StopRequest() as stop:
            try:
                self._start()
                while self.done < self.settings.steps and not stop:
                    self._step()
                    if self.done % self.options.checkpoint_every == 0 or self.done == self.settings.steps:
                        self._save()
                if stop.signal is not None:
                    self._save()
                    return self._interrupted(stop)
                self.progress.doing("validating")
                return self._report()
            except TrainError:
                raise
            except (Exception, KeyboardInterrupt) as error:
                # A step cut off half way (a terminal's Ctrl-C ends the C++ compiler too) must not be saved.
                if stop.signal is not None:
                    return self._interrupted(stop, cut_off=type(error).__name__)
                raise
            finally:
                policy = self.learners["policy"]
                if policy.monitor is not None:
                    policy.monitor.close()

    def _start(self) -> None:
        out = self.options.out
        if self.options.resume:
            self.done = checkpoint.restore(out, settings=self.settings, text=self.text.digest, learners=self.learners)
            self.saved = self.done
            self.progress.note(f"resuming {out / checkpoint.FILE} after step {self.done}/{self.settings.steps}")
        elif (out / checkpoint.FILE).exists():
            self.progress.note(f"starting anew: the checkpoint in {out} will be replaced (--resume goes on with it)")
        self.progress.note(f"text: {self.text.source}, {self.text.train.numel() / 1e6:.1f} MB to train on")
        if self.done < self.settings.steps:
            self._monitor()
            self._warm_up()

    def _monitor(self) -> None:
        """Opens the file of statistics; a run that resumes adds to it."""
        if self.options.monitor is None:
            return
        policy = self.learners["policy"]
        try:
            policy.monitor = monitor(
                policy.model, every=self.options.monitor_every, to=self.options.monitor, start=self.done
            )
        except OSError as error:
            raise TrainError(str(error).removeprefix("metis: ")) from None

    def _warm_up(self) -> None:
        """Compile something tiny: what a process pays once is then in neither model's compile time."""
        self.progress.doing("starting the compiler")
        log.disabled = True  # what the policy does to it is of no interest, nor is it said already of the model
        try:
            with warnings.catch_warnings(action="ignore", category=PolicyWarning):
                for trainer in self.learners.values():
                    linear = torch.nn.Linear(32, 32, device=self.settings.device)
                    compiled = torch.compile(linear, backend=trainer.variant.backend, options=trainer.variant.options)
                    compiled(torch.ones(32, 32, device=self.settings.device)).sum().backward()
        finally:
            log.disabled = False
            torch.compiler.reset()

    def _step(self) -> None:
        settings = self.settings
        tokens, targets = self.text.batch(
            seed=settings.seed, step=self.done, batch=settings.batch, context=settings.context
        )
        tokens, targets = tokens.to(settings.device), targets.to(settings.device)
        # Turns change places every step: neither model always finds the caches as the other left them.
        order = list(self.learners.values())[:: 1 if self.done % 2 == 0 else -1]
        for trainer in order:
            if not trainer.compiled_here:
                self.progress.doing(f"compiling {trainer.variant.label}")
            trainer.step(self.done, tokens, targets)
        self.done += 1
        losses = {trainer.variant.label: trainer.history.losses[-1] for trainer in self.learners.values()}
        self.progress.stepped(self.done, losses)

    def _save(self) -> None:
        if self.saved == self.done or self.done == 0:
            return
        self.unsaved = None
        try:
            checkpoint.save(
                self.options.out,
                settings=self.settings,
                text=self.text.digest,
                step=self.done,
                learners=self.learners,
            )
        except TrainError as error:  # a disk that is full now may have room at the next checkpoint
            self.unsaved = str(error)
            before = "none is there yet" if self.saved is None else f"that of step {self.saved} is still there"
            self.progress.note(f"{error}: the checkpoint of step {self.done} is missing, {before}")
        else:
            self.saved = self.done

    def _interrupted(self, stop: StopRequest, cut_off: str | None = None) -> Interrupted:
        assert stop.signal is not None
        return Interrupted(signal=stop.signal, step=self.done, saved=self.saved, cut_off=cut_off, unsaved=self.unsaved)

    def _report(self) -> Report:
        settings, out = self.settings, self.options.out
        batches = self.text.validation_batches(count=VALIDATION_BATCHES, batch=settings.batch, context=settings.context)
        averaged = min(self.options.average, settings.steps)
        files = {"plot": out / "loss.png", "report": out / "report.json", "checkpoint": out / checkpoint.FILE}
        if self.options.html is not None:
            files["html"] = self.options.html
        if self.options.monitor is not None:
            files["statistics"] = self.options.monitor
        report = Report(
            settings=settings,
            device=device_name(settings.device),
            text=self.text.source,
            text_digest=self.text.digest,
            parameters=sum(p.numel() for p in self.learners["policy"].model.parameters()),
            averaged=averaged,
            full_precision=side(self.learners["full_precision"], batches, averaged),
            policy=side(self.learners["policy"], batches, averaged),
            policy_files=self.policy_files,
            files=files,
        )
        unwritten = [] if self.unsaved is None else [self.unsaved]
        for name, put in (
            ("report", lambda path: path.write_text(json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")),
            ("plot", lambda path: draw(report, path)),
        ):
            try:
                with writing(files[name], TrainError):
                    put(files[name])
            except TrainError as error:
                unwritten.append(str(error))
        if self.options.html is not None:
            try:
                self._write_page(report, batches, self.options.html)
            except ReportError as error:
                unwritten.append(str(error))
        return replace(report, unwritten=tuple(unwritten))

    def _write_page(self, report: Report, batches: list[tuple[torch.Tensor, torch.Tensor]], path: Path) -> None:
        """After all else is written: it looks at the model anew, which takes some seconds."""
        self.progress.doing("writing the page")
        learner = self.learners["policy"]
        explained = [] if self.policy is None else explanations(self.settings, self.policy)
        found = []
        if self.policy is not None:
            last = self.policy.stages[-1].policy if isinstance(self.policy, Schedule) else self.policy
            tokens = batches[0][0].to(self.settings.device)
            with learner.autocast():
                found = spectra(learner.model, lambda: learner.model(tokens), explained[-1][1], last)
        statistics = [] if self.options.monitor is None else read_statistics(self.options.monitor)
        made = page(
            report.to_dict(), policy=self.policy_files, explained=explained, spectra=found, statistics=statistics
        )
        write(made, path)


def side(trainer: Trainer, batches: list[tuple[torch.Tensor, torch.Tensor]], averaged: int) -> Side:
    """One model's half of the report."""
    history = trainer.history
    assert history.saved_bytes is not None
    assert history.compile_seconds is not None
    return Side(
        label=trainer.variant.label,
        backend=trainer.variant.backend,
        train_loss=history.mean_loss(averaged),
        validation_loss=trainer.validate(batches),
        step_seconds=history.median_seconds(),
        saved_bytes=history.saved_bytes,
        compile_seconds=history.compile_seconds,
        losses=history.losses,
    )


def device_name(device: str) -> str:
    """What a person calls the device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
