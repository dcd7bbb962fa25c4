"""The two loss curves as a PNG."""

from functools import partial
from pathlib import Path
from typing import Any

from metis_compile.measure.plot import save
from metis_compile.train.report import Report

__all__ = ["draw"]


def draw(report: Report, path: Path) -> None:
    """Write the losses of both models, and the gap between their running means, to ``path`` (PNG)."""
    save(partial(draw_on, report), path, size=(8, 6))


def draw_on(report: Report, figure: Any) -> None:
    """The same on a matplotlib figure."""
    curves, gaps = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    window = max(1, report.settings.steps // 20)
    smooth = []
    for side, colour in ((report.full_precision, "tab:blue"), (report.policy, "tab:orange")):
        mean = running_mean(side.losses, window)
        smooth.append(mean)
        steps = range(1, len(side.losses) + 1)
        curves.plot(steps, side.losses, color=colour, alpha=0.25, linewidth=0.8)
        curves.plot(steps, mean, color=colour, label=f"{side.label}: validation {side.validation_loss:.4f}")
    gap = [100 * (policy - full) / full for full, policy in zip(*smooth, strict=True)]
    gaps.plot(range(1, len(gap) + 1), gap, color="tab:gray")
    gaps.axhline(0, color="black", linewidth=0.5)
    curves.set_ylabel("training loss, nats per byte")
    curves.set_title(f"full precision and {report.policy.label}, same seed and batches")
    curves.legend()
    gaps.set_ylabel("gap, %")
    gaps.set_xlabel(f"step (heavy lines: mean of {window})")


def running_mean(values: list[float], window: int) -> list[float]:
    """The mean of each value and up to ``window - 1`` before it."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value
        if i >= window:
            total -= values[i - window]
        means.append(total / min(i + 1, window))
    return means
