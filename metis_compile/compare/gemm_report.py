"""``metis compare --gemm``: the errors of products by policy, as tables, Markdown, JSON and a plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from metis_compile.compare.gemm import PRODUCTS, GemmError, gemm_errors, snapshots
from metis_compile.compare.gemm_plot import draw
from metis_compile.compare.gemm_summary import ALL, by_gemm, by_kind, by_module, by_operand, kinds, over
from metis_compile.compare.run import identity
from metis_compile.compare.run_config import RunConfig
from metis_compile.measure.checkout import commit
from metis_compile.measure.folder import check_folder, writing
from metis_compile.measure.machine import machine
from metis_compile.measure.markdown import markdown_table
from metis_compile.train.errors import TrainError
from metis_compile.train.progress import RunProgress
from metis_compile.train.report import finite
from metis_compile.train.settings import Settings

__all__ = ["Sheet", "compare_gemms", "sheets"]

REFERENCE = "nvfp4"  # what errors are relative to, where it is among the policies
Errors = Mapping[str, Sequence[GemmError]]  # by policy


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One of the tables: the errors seen one way."""

    name: str  # of its file
    title: str
    headings: Sequence[str]
    cells: Sequence[Sequence[str]]

    def table(self) -> Table:
        """For a terminal."""
        made = Table(title=self.title)
        for i, heading in enumerate(self.headings):
            made.add_column(heading.replace("`", ""), justify="left" if i == 0 else "right")
        for row in self.cells:
            made.add_row(*(cell.replace("`", "") for cell in row))
        return made

    def markdown(self) -> str:
        """For a page of documentation."""
        return markdown_table(self.headings, self.cells)


def compare_gemms(
    policies: Sequence[str], settings: Settings, out: Path, console: Console
) -> tuple[list[Sheet], dict[str, Path]]:
    """Measures each policy's errors and writes them under ``out``; returns the tables, and the paths by what is there.

    Raises TrainError if a run cannot start or a file cannot be written, PolicyError for a bad policy.
    """
    arms = [RunConfig(text=text) for text in dict.fromkeys(policies)]
    names = [arm.name for arm in arms]
    for arm in arms:
        if arm.changes:
            raise TrainError(f"a comparison of products takes policies alone, got {arm.text!r}")
        if names.count(arm.name) > 1:
            raise TrainError(f"two policies have the name {arm.name!r}: rename one of the files")
    check_folder(out, TrainError)
    about = {
        "settings": identity(settings) | {"seed": settings.seed},
        "machine": machine(),
        "commit": commit(),
        "policies": {arm.name: arm.variant().digest for arm in arms},
    }
    with RunProgress(console, settings.steps) as progress:
        progress.doing("compiling full precision")
        model, (before, now) = snapshots(settings, lambda step, loss: progress.stepped(step, {"high": loss}))
        tokens = torch.zeros(settings.batch, settings.context, dtype=torch.int64, device=settings.device)
        errors = {}
        for arm in arms:
            progress.doing(f"products of {arm.name}")
            errors[arm.name] = gemm_errors(arm.policy, model, tokens, before, now)
    return sheets(errors), write(errors, about, out)


def write(errors: Errors, about: dict[str, Any], out: Path) -> dict[str, Path]:
    """Write numbers, tables and plot; returns the paths by what is in them. Raises TrainError if they can't be."""
    files = {"report": out / "gemm.json", "plot": out / "gemm.png"}
    with writing(out, TrainError):
        files["report"].write_text(json.dumps(finite(about | to_json(errors)), indent=1, allow_nan=False) + "\n")
        for sheet in sheets(errors):
            files[f"{sheet.name}, Markdown"] = out / f"{sheet.name}.md"
            files[f"{sheet.name}, Markdown"].write_text(sheet.markdown())
        draw(errors, files["plot"])
    return files


def to_json(errors: Errors) -> dict[str, Any]:
    """Means, and every layer's errors, by policy, layer, product and the operands that are quantized."""
    means: dict[str, Any] = {}
    for name, found in errors.items():
        alone = by_operand(found)
        means[name] = {
            gemm: {ALL: mean} | {role: value for (of, role), value in alone.items() if of == gemm}
            for gemm, mean in by_gemm(found).items()
        }
    return {"mean_errors": means, "errors": {name: by_module(found) for name, found in errors.items()}}


def sheets(errors: Errors) -> list[Sheet]:
    """By product, by the operand that alone is quantized, and by kind of layer."""
    return [_products(errors), _operands(errors), _layers(errors)]


def _products(errors: Errors) -> Sheet:
    """For each policy and product the mean error, and that over the reference's on the layers that both quantize."""
    cells = []
    for name, found in errors.items():
        means, ratios = by_gemm(found), over(found, errors.get(REFERENCE, []))
        row = [f"`{name}`"]
        for gemm in PRODUCTS:
            row.append(_text(means.get(gemm)))
            row.append(f"{ratios[gemm]:.2f}" if gemm in ratios else "-")
        cells.append(row)
    headings = ["policy", *(text for gemm in PRODUCTS for text in (gemm, f"/ {REFERENCE}"))]
    return Sheet(
        name="products", title="relative error of products, geometric mean over layers", headings=headings, cells=cells
    )


def _operands(errors: Errors) -> Sheet:
    """For each policy the mean error of every product with one operand alone quantized."""
    columns = [(gemm, role) for gemm, operands in PRODUCTS.items() for role, _ in operands]
    cells = []
    for name, found in errors.items():
        means = by_operand(found)
        cells.append([f"`{name}`", *(_text(means.get(column)) for column in columns)])
    headings = ["policy", *(f"{gemm}, {role}" for gemm, role in columns)]
    return Sheet(name="operands", title="the same with one operand alone quantized", headings=headings, cells=cells)


def _layers(errors: Errors) -> Sheet:
    """For each kind of layer and product the mean error of every policy."""
    means = {name: by_kind(found) for name, found in errors.items()}
    of_all = kinds(error for found in errors.values() for error in found)
    cells = [
        [f"{kind}, {gemm}", *(_text(of_policy.get((kind, gemm))) for of_policy in means.values())]
        for kind in of_all
        for gemm in PRODUCTS
    ]
    headings = ["layer, product", *(f"`{name}`" for name in errors)]
    return Sheet(name="layers", title="the same by kind of layer, all operands", headings=headings, cells=cells)


def _text(error: float | None) -> str:
    return "-" if error is None else f"{error:.4f}"
