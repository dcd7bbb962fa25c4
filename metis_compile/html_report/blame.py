"""Which operand costs the loss: what `metis blame --json` wrote, as heat maps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metis_compile.html_report.blocks import HeatMap, Section, Table
from metis_compile.html_report.errors import ReportError

__all__ = ["blame_section", "read_blame"]

GEMMS = ("fprop", "dgrad", "wgrad")
MOST = 8  # rows of the table


def read_blame(path: Path) -> dict[str, Any]:
    """Raises ReportError for a file that is not of `metis blame --json`."""
    try:
        found = json.loads(path.read_text())
        blame_section(found)
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ReportError(f"{path} is not what metis blame --json prints") from None
    return dict(found)


def blame_section(blame: Mapping[str, Any]) -> Section:
    """blame: `Blame.to_dict()`."""
    shares = blame["shares"]
    modules = list(dict.fromkeys(share["module"] for share in shares))
    columns = sorted({(s["gemm"], s["operand"]) for s in shares}, key=lambda c: (GEMMS.index(c[0]), c[1]))
    loss, gradient = ({}, {})  # type: ignore[var-annotated]
    for share in shares:
        at = share["module"], (share["gemm"], share["operand"])
        loss[at] = 100 * share["alone"]["loss"] / blame["loss"]
        gradient[at] = 100 * share["alone"]["gradient"]

    def map_of(title: str, unit: str, values: Mapping[Any, float], digits: int) -> HeatMap:
        return HeatMap(
            title=title,
            unit=unit,
            rows=[module or "<model>" for module in modules],
            columns=[f"{gemm} {operand}" for gemm, operand in columns],
            values=[[_finite(values.get((module, column))) for column in columns] for module in modules],
            digits=digits,
        )

    first = sorted(shares, key=lambda share: share["alone"]["loss"], reverse=True)[:MOST]
    rows = [
        (
            s["module"] or "<model>",
            f"{s['gemm']} {s['operand']}",
            f"{s['alone']['loss']:+.4f}",
            f"{s['without']['loss']:+.4f}",
            f"{100 * s['alone']['gradient']:.2f} %",
        )
        for s in first
    ]
    total = blame["total"]
    return Section(
        id="blame",
        title="Which operand costs the loss",
        lead=f"Each operand quantized alone, without training, under the policy {blame['policy']}: on "
        f"{blame['batches']} batches with a loss of {blame['loss']:.4f} in high precision, all of them together change "
        f"it by {total['loss']:+.4f} and its gradients by {100 * total['gradient']:.2f} %.",
        blocks=[
            map_of("Change of the loss, each alone", "% of the loss", loss, 3),
            map_of("Error of all gradients, each alone", "% of their norm", gradient, 2),
            Table(
                title="What costs most",
                headings=("module", "operand", "loss alone", "loss without it", "gradients alone"),
                rows=rows,
                texts=(0, 1),
            ),
        ],
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
