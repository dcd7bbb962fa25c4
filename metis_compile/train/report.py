"""What a run found, as JSON and as a table."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from metis_compile import __version__
from metis_compile.measure.machine import machine
from metis_compile.train.settings import Settings

__all__ = ["Report", "Side"]

# No ratio of first steps: what both models' code shares is compiled for the first of them alone.
CAPTION = "the policy compiles second; metis bench compile times each alone"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models after the run."""

    label: str
    backend: str  # torch.compile's
    train_loss: float  # mean of the last steps, nats per byte
    validation_loss: float  # nats per byte
    step_seconds: float | None  # median, without the steps that compiled; None if no other ran
    saved_bytes: int  # what one forward keeps for backward, parameters left out
    compile_seconds: float  # the first step, with what is in Inductor's caches; the policy's comes second
    losses: list[float]  # of every step


@dataclass(frozen=True, kw_only=True)
class Report:
    """Full precision and the policy beside each other."""

    settings: Settings
    device: str  # what the device calls itself
    text: str  # where the text came from
    text_digest: str
    parameters: int  # elements
    averaged: int  # steps that train_loss averages
    full_precision: Side
    policy: Side
    files: dict[str, Path]  # by what is in them
    policy_files: Sequence[tuple[str, str]] = ()  # the policy's file and those that it extends or names: name, text
    unwritten: tuple[str, ...] = ()  # what could not be written, and why; the numbers are whole all the same

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite is None."""
        return finite(
            {
                "settings": asdict(self.settings),
                "device": self.device,
                "text": {"source": self.text, "sha256": self.text_digest},
                "parameters": self.parameters,
                "averaged_steps": self.averaged,
                "full_precision": asdict(self.full_precision),
                "policy": asdict(self.policy),
                "train_gap_percent": gap(self.policy.train_loss, self.full_precision.train_loss),
                "validation_gap_percent": gap(self.policy.validation_loss, self.full_precision.validation_loss),
                "step_time_ratio": ratio(self.policy.step_seconds, self.full_precision.step_seconds),
                "saved_bytes_ratio": ratio(self.policy.saved_bytes, self.full_precision.saved_bytes),
                "policy_files": [{"name": name, "text": text} for name, text in self.policy_files],
                "files": {name: str(path) for name, path in self.files.items()},
                "versions": {"metis_compile": __version__},
                "machine": machine(),
            }
        )

    def table(self) -> Table:
        """The comparison, for a terminal."""
        full, policy, numbers = self.full_precision, self.policy, self.to_dict()
        table = Table(
            title=f"{self.parameters:,} parameters, {self.settings.steps} steps, {self.settings.dtype}, {self.device}",
            caption=CAPTION,
        )
        table.add_column("")
        for heading in (full.label, policy.label, "policy / full"):
            table.add_column(heading, justify="right")

        def gap_row(name: str, left: float, right: float, key: str) -> None:
            percent = numbers[key]
            table.add_row(name, f"{left:.4f}", f"{right:.4f}", "-" if percent is None else f"{percent:+.2f} %")

        def ratio_row(name: str, left: str, right: str, key: str) -> None:
            value = numbers[key]
            table.add_row(name, left, right, "-" if value is None else f"{value:.2f}x")

        gap_row(
            f"train loss, last {self.averaged}",
            full.train_loss,
            policy.train_loss,
            "train_gap_percent",
        )
        gap_row("validation loss", full.validation_loss, policy.validation_loss, "validation_gap_percent")
        ratio_row(
            "step time, median",
            milliseconds(full.step_seconds),
            milliseconds(policy.step_seconds),
            "step_time_ratio",
        )
        ratio_row(
            "saved for backward",
            mebibytes(full.saved_bytes),
            mebibytes(policy.saved_bytes),
            "saved_bytes_ratio",
        )
        table.add_row("first step (compiles)", f"{full.compile_seconds:.1f} s", f"{policy.compile_seconds:.1f} s", "-")
        return table


def gap(loss: float, reference: float) -> float:
    """How far ``loss`` is above ``reference``, in percent."""
    return 100 * (loss - reference) / reference


def ratio(value: float | None, reference: float | None) -> float | None:
    """value / reference; None where either is missing or the reference is 0."""
    return None if value is None or not reference else value / reference


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def finite(value: Any) -> Any:
    """``value`` with None for every float that JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
