"""Statistics while it trained, from the JSON lines of a monitor."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from metis_compile.html_report.blocks import Block, Chart, HeatMap, Legend, Line, Scale, Section, Table
from metis_compile.html_report.errors import ReportError
from metis_compile.monitoring.reading import ReadError, read_run

__all__ = ["read_statistics", "statistics_section"]

Record = dict[str, Any]
GEMMS = ("fprop", "dgrad", "wgrad")
# field, title, factor, scale of the axis, unit
OPERANDS: tuple[tuple[str, str, float, Scale, str], ...] = (
    ("error", "Error of quantization", 100, "linear", "% of the operand's norm"),
    ("underflow", "Underflow", 100, "linear", "% of nonzero elements"),
    ("saturation", "Saturation", 100, "linear", "% of elements"),
    ("split_energy", "Taken by the split", 100, "linear", "% of the energy"),
    ("mean_share", "In the mean of the rows", 100, "linear", "% of the energy"),
    ("scale_spread", "Spread of block scales", 1, "linear", "largest over smallest, log2"),
    ("amax", "Largest magnitude", 1, "log", ""),
)


def read_statistics(path: Path) -> list[Record]:
    """The records of a monitor's file, or of the run of `metis train` that a folder or a report is of.

    Of a record that is there twice, as after a run that was resumed, the last counts. Raises ReportError.
    """
    try:
        steps = read_run(path).records
    except ReadError as error:
        raise ReportError(str(error)) from None
    found = [dict(_flat(record)) | {"step": step} for step, records in steps.items() for record in records.values()]
    if not found:
        raise ReportError(f"{path} has no statistics: metis train --monitor FILE writes some")
    for record in found:
        if record.get("gemm") not in GEMMS or not all(
            isinstance(record.get(name), str) for name in ("site", "operand")
        ):
            raise ReportError(f"{path} holds what is no record of a monitor: {str(record)[:60]}")
    return found


def _flat(record: Record, before: str = "") -> Iterable[tuple[str, Any]]:
    """Names and values, those of other formats as "what_if.mxfp8.error"."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def statistics_section(records: Sequence[Record]) -> Section:
    """records: as `read_statistics` gives them."""
    steps = sorted({record["step"] for record in records})
    sites = len({record["site"] for record in records})
    blocks: list[Block] = []
    products = [record for record in records if record["operand"] == "product"]
    operands = [record for record in records if record["operand"] != "product"]
    lines = _lines(products, "error", 100, by=("gemm",), band=True)
    if lines:
        blocks.append(
            Chart(
                title="Error of the products",
                y_label="% of their norm",
                x_label="step",
                lines=lines,
                note="The median over modules; the bands hold four fifths of them.",
            )
        )
    charts = []
    for field, title, factor, scale, unit in OPERANDS:
        lines = _lines(operands, field, factor, by=("gemm", "operand"))
        if lines:
            charts.append(
                Chart(
                    title=title,
                    y_label=unit,
                    x_label="step",
                    lines=lines,
                    half=True,
                    y_scale=scale,
                    has_legend=False,
                )
            )
    if charts:
        # A field may be there for some operands alone; their colours are the same in all charts.
        legend = {line.label: line for chart in charts for line in chart.lines}
        blocks += [Legend(lines=sorted(legend.values(), key=lambda line: line.colour)), *charts]
    last = [record for record in records if record["step"] == steps[-1]]
    if heat := _heat_map(last, steps[-1]):
        blocks.append(heat)
    if table := _what_if([record for record in last if record["operand"] != "product"], steps[-1]):
        blocks.append(table)
    return Section(
        id="statistics",
        title="Statistics over time",
        lead=f"Of {sites} modules, in {len(steps)} sampled steps, from step {steps[0]} to {steps[-1]}. Curves of "
        "operands are medians over modules.",
        blocks=blocks,
    )


def _lines(records: Sequence[Record], field: str, factor: float, by: Sequence[str], band: bool = False) -> list[Line]:
    groups: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        value = record.get(field)
        if isinstance(value, (int, float)):
            groups[tuple(record[name] for name in by)][record["step"]].append(factor * value)
    found = []
    ordered = sorted({tuple(record[name] for name in by) for record in records}, key=lambda g: (GEMMS.index(g[0]), g))
    for colour, group in enumerate(ordered):
        at = {step: [v for v in values if math.isfinite(v)] for step, values in sorted(groups[group].items())}
        at = {step: sorted(values) for step, values in at.items() if values}
        if not at:
            continue
        spread = band and any(len(values) > 1 for values in at.values())
        found.append(
            Line(
                label=" ".join(group),
                x=list(at),
                y=[statistics.median(values) for values in at.values()],
                low=[_share(values, 0.1) for values in at.values()] if spread else (),
                high=[_share(values, 0.9) for values in at.values()] if spread else (),
                colour=colour,
            )
        )
    return found


def _share(values: Sequence[float], share: float) -> float:
    """The quantile of sorted values, linear between them."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def _heat_map(records: Sequence[Record], step: int) -> HeatMap | None:
    """Errors by module and operand; of several calls of a module, the largest."""
    found: dict[tuple[str, tuple[str, str]], float] = {}
    for record in records:
        error = record.get("error")
        if isinstance(error, (int, float)) and math.isfinite(error):
            at = record["site"], (record["gemm"], record["operand"])
            found[at] = max(100 * error, found.get(at, 0.0))
    if not found:
        return None
    sites = list(dict.fromkeys(site for site, _ in found))
    columns = sorted({column for _, column in found}, key=lambda c: (GEMMS.index(c[0]), c[1] == "product", c[1]))
    return HeatMap(
        title=f"Errors in step {step}",
        unit="% of the norm",
        rows=[site or "<model>" for site in sites],
        columns=[f"{gemm} {operand}" for gemm, operand in columns],
        values=[[found.get((site, column)) for column in columns] for site in sites],
        digits=1,
    )


def _what_if(records: Sequence[Record], step: int) -> Table | None:
    """Median error of each operand in the formats that the monitor was asked for."""
    formats = list(dict.fromkeys(n.split(".")[1] for r in records for n in r if n.startswith("what_if.")))
    if not formats:
        return None
    rows = []
    for group in sorted({(r["gemm"], r["operand"]) for r in records}, key=lambda g: (GEMMS.index(g[0]), g[1])):
        mine = [r for r in records if (r["gemm"], r["operand"]) == group]
        errors = [[r.get(name) for r in mine] for name in ("error", *(f"what_if.{f}.error" for f in formats))]
        known = [[v for v in values if isinstance(v, (int, float)) and math.isfinite(v)] for values in errors]
        rows.append((" ".join(group), *(f"{100 * statistics.median(v):.2f} %" if v else "-" for v in known)))
    return Table(
        title=f"The same operands in other formats, step {step}",
        headings=("operand", "as it is", *formats),
        rows=rows,
        note="Median over modules of the error of quantization.",
    )
