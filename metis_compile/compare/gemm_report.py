"""``metis compare --gemm``: the errors of products by policy, as a table, Markdown, JSON and a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from metis_compile.compare.arm import Arm
from metis_compile.compare.gemm import PRODUCTS, GemmError, by_gemm, gemm_errors, snapshots
from metis_compile.compare.trial import identity
from metis_compile.measure.machine import machine
from metis_compile.measure.markdown import markdown_table
from metis_compile.train.errors import TrainError
from metis_compile.train.progress import RunProgress
from metis_compile.train.report import finite
from metis_compile.train.settings import Settings

__all__ = ["compare_gemms"]

REFERENCE = "nvfp4"  # what errors are relative to, where it is among the policies


def compare_gemms(policies: Sequence[str], settings: Settings, out: Path, console: Console) -> tuple[Table, Path]:
    """Measures each policy's errors, writes them under ``out``, and returns the table and the JSON's path.

    Raises TrainError if a run cannot start or a file cannot be written, PolicyError for a bad policy.
    """
    arms = [Arm(text=text) for text in dict.fromkeys(policies)]
    for arm in arms:
        if arm.changes:
            raise TrainError(f"a comparison of products takes policies alone, got {arm.text!r}")
        arm.variant()
    with RunProgress(console, settings.steps) as progress:
        progress.doing("compiling full precision")
        model, (before, now) = snapshots(settings, lambda step, loss: progress.stepped(step, {"high": loss}))
        tokens = torch.zeros(settings.batch, settings.context, dtype=torch.int64, device=settings.device)
        errors = {}
        for arm in arms:
            progress.doing(f"products of {arm.name}")
            errors[arm.name] = gemm_errors(arm.policy, model, tokens, before, now)
    path = out / "gemm.json"
    report = {
        "settings": identity(settings) | {"seed": settings.seed},
        "machine": machine(),
        "mean_errors": {name: by_gemm(found) for name, found in errors.items()},
        "errors": [asdict(error) for found in errors.values() for error in found],
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(finite(report), indent=1, allow_nan=False) + "\n")
        (out / "gemm.md").write_text(markdown(errors))
    except OSError as error:
        raise TrainError(f"cannot write {error.filename}: {error.strerror}") from None
    return table(errors), path


def rows(errors: dict[str, list[GemmError]]) -> list[list[str]]:
    """For each policy and product the mean error, and that over the reference's; then each operand alone."""
    reference = by_gemm(errors.get(REFERENCE, []))
    found = []
    for name, of_policy in errors.items():
        means = by_gemm(of_policy)
        row = [name]
        for gemm in PRODUCTS:
            row.append("-" if gemm not in means else f"{means[gemm]:.4f}")
            ratio = means[gemm] / reference[gemm] if gemm in means and gemm in reference else None
            row.append("-" if ratio is None else f"{ratio:.2f}")
        found.append(row)
    return found


def headings() -> list[str]:
    return ["policy", *(text for gemm in PRODUCTS for text in (gemm, f"/ {REFERENCE}"))]


def table(errors: dict[str, list[GemmError]]) -> Table:
    """For a terminal."""
    made = Table(title="relative error of products, geometric mean over layers")
    for i, heading in enumerate(headings()):
        made.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows(errors):
        made.add_row(*row)
    return made


def markdown(errors: dict[str, list[GemmError]]) -> str:
    """For a page of documentation."""
    return markdown_table(headings(), [[f"`{row[0]}`", *row[1:]] for row in rows(errors)])
