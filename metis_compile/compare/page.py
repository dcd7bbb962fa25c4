"""A comparison as a page of HTML."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from metis_compile.compare.plot import gaps
from metis_compile.compare.record import Record
from metis_compile.compare.run_config import BASELINE, RunConfig
from metis_compile.compare.summary import HEADINGS, Row, Spread, cells
from metis_compile.html_report import (
    Block,
    Chart,
    Figure,
    Line,
    Mark,
    Page,
    Section,
    Table,
    blame_section,
    cost_section,
    policy_section,
    quantized_section,
    rerun_section,
    statistics_section,
)
from metis_compile.inspection.explain import Explanation
from metis_compile.train.page import settings_command
from metis_compile.train.plot import running_mean

__all__ = ["page"]

LEVEL = 0.95  # of the confidence band
WINDOWS = 12  # in a run, which its curves are smoothed over
LARGE = 10.0  # percent: gaps beyond are drawn on a logarithmic axis


def page(
    records: Sequence[Record],
    rows: Sequence[Row],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    *,
    title: str,
    explained: Sequence[tuple[str, Explanation]] = (),
    policies: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (),
    statistics: Sequence[dict[str, Any]] = (),
    blame: Mapping[str, Any] | None = None,
) -> Page:
    """records: of all trials. rows, settings, machine, title: as in compare.json. The rest is a section each."""
    branch = settings.get("branch", 0)
    sections = [_gaps(records, rows, title, branch), _losses(records, branch)]
    left_out = []
    if explained:
        sections.append(quantized_section(explained))
    if statistics:
        sections.append(statistics_section(statistics))
    else:
        left_out.append(
            "Not in this report: statistics over time. metis report RUN --statistics FILE adds a monitor's."
        )
    if blame is not None:
        sections.append(blame_section(blame))
    else:
        left_out.append("Not in this report: which operand costs the loss. metis report RUN --blame FILE adds it.")
    left_out.append("Spectra of activations are in the report of metis train: trials keep no weights.")
    measured = [block for block in (_measured(rows),) if block is not None]
    sections.append(cost_section(measured, explained))
    if policies:
        sections.append(policy_section(policies))
    arms = [arm for arm in dict.fromkeys(record.arm for record in records) if arm != BASELINE]
    seeds = sorted({record.seed for record in records})
    command = f"{settings_command('compare', settings, *arms)} --seeds {shlex.quote(_seeds(seeds))}"
    sections.append(rerun_section(command, machine, [("text's SHA-256", records[0].text[:16])]))
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return Page(
        title=" and ".join(RunConfig(text=arm).name for arm in arms) + " beside full precision"
        if len(arms) <= 2
        else f"{len(arms)} policies beside full precision",
        lead=f"{settings['model']}, width {settings['width']}, {settings['layers']} layers, {settings['steps']} steps "
        f"of {settings['batch'] * settings['context']:,} tokens, {settings['dtype']}, {count}"
        + (f"; the first {settings['branch']} steps are full precision's, once for all" if branch else "")
        + ".",
        figures=_figures(rows),
        sections=sections,
        left_out=left_out,
    )


def half_width(values: Sequence[float]) -> float:
    """Of the confidence interval of the mean of values that are drawn from a normal distribution; NaN of one value."""
    if len(values) < 2:
        return math.nan
    return _student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


@cache
def _student(freedom: int) -> float:
    """What |t| of so many degrees of freedom is below in LEVEL of all cases."""
    from mpmath import betainc, findroot

    def beyond(t: float) -> Any:
        return betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True) - (1 - LEVEL)

    return float(findroot(beyond, (1.5, 20), solver="anderson", tol=1e-12))


def _figures(rows: Sequence[Row]) -> list[Figure]:
    """The nearest to full precision, and of few arms each."""
    mine = [row for row in rows if not RunConfig(text=row.arm).is_baseline]
    if len(mine) <= 4:
        return [
            Figure(
                label=row.arm, value=_mean(row.validation_gap), note=f"validation gap{_deviation(row.validation_gap)}"
            )
            for row in mine
        ]
    known = [row for row in mine if math.isfinite(row.validation_gap.mean)]
    found = [
        Figure(
            label="least validation gap",
            value=_mean(row.validation_gap),
            note=f"{row.arm}{_deviation(row.validation_gap)}",
        )
        for row in sorted(known, key=lambda row: row.validation_gap.mean)[:1]
    ]
    found += [
        Figure(label="least kept for backward", value=f"{row.saved_ratio:.2f}x", note=row.arm)
        for row in sorted(mine, key=lambda row: row.saved_ratio)[:1]
    ]
    timed = [(row.cost.step_ratio, row.arm) for row in mine if row.cost is not None]
    found += [Figure(label="quickest step here", value=f"{ratio:.2f}x", note=arm) for ratio, arm in sorted(timed)[:1]]
    return found


def _mean(gap: Spread) -> str:
    return f"{gap.mean:+.2f} %" if math.isfinite(gap.mean) else "diverged"


def _deviation(gap: Spread) -> str:
    return "" if gap.deviation is None else f" ± {gap.deviation:.2f}"


def _gaps(records: Sequence[Record], rows: Sequence[Row], title: str, branch: int) -> Section:
    references = {record.seed: record for record in records if record.arm == BASELINE}
    window = _window(records)
    start = max(window, branch)  # before it all are full precision
    lines = []
    arms = [arm for arm in dict.fromkeys(record.arm for record in records) if arm != BASELINE]
    several = False
    for number, arm in enumerate(arms):
        curves = [
            gaps(r, references[r.seed], window)[start - 1 :] for r in records if r.arm == arm and r.seed in references
        ]
        if not curves:
            continue
        at = list(zip(*curves, strict=True))
        mean = [statistics.fmean(values) for values in at]
        off = [half_width(values) if all(map(math.isfinite, values)) else math.nan for values in at]
        banded = len(curves) > 1
        several |= banded
        lines.append(
            Line(
                label=RunConfig(text=arm).name,
                x=range(start, start + len(mean)),
                y=mean,
                low=[m - o for m, o in zip(mean, off, strict=True)] if banded else (),
                high=[m + o for m, o in zip(mean, off, strict=True)] if banded else (),
                colour=number,
                dash=number // 8,
            )
        )
    largest = max((abs(v) for line in lines for v in line.y if math.isfinite(v)), default=0.0)
    note = f"Between running means of {window} steps, from the same seed."
    if several:
        note += f" Lines: mean over seeds; bands: where its true value is with {LEVEL:.0%} confidence (Student's t)."
    if largest > LARGE:
        note += " The axis is logarithmic beyond 1 %."
    chart = Chart(
        title="Gap",
        y_label="% of full precision's training loss",
        x_label="step",
        lines=lines,
        zero=True,
        y_scale="symlog" if largest > LARGE else "linear",
        note=note,
    )
    table = Table(title="At the end", headings=HEADINGS, rows=[cells(row) for row in rows], note=f"{title}.")
    return Section(
        id="gap",
        title="How far behind full precision",
        lead="Every policy starts from the weights of its seed and reads the same batches as full precision does.",
        blocks=[chart, table],
    )


def _losses(records: Sequence[Record], branch: int) -> Section:
    window = _window(records)
    start = max(window, branch)
    lines = []
    for number, arm in enumerate(dict.fromkeys(record.arm for record in records)):
        curves = [
            running_mean([math.nan if x is None else x for x in record.losses], window)[start - 1 :]
            for record in records
            if record.arm == arm
        ]
        mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        baseline = arm == BASELINE
        lines.append(
            Line(
                label="full precision" if baseline else RunConfig(text=arm).name,
                x=range(start, start + len(mean)),
                y=mean,
                colour=number - 1 if number else 7,
                dash=0 if baseline else (number - 1) // 8,
                broad=baseline,
            )
        )
    chart = Chart(
        title="Training loss",
        y_label="nats per byte",
        x_label="step",
        lines=lines,
        note=f"Means over seeds and {window} steps.",
    )
    return Section(id="losses", title="Losses", blocks=[chart])


def _window(records: Sequence[Record]) -> int:
    return max(1, len(records[0].losses) // WINDOWS)


def _measured(rows: Sequence[Row]) -> Block | None:
    marks = []
    for number, row in enumerate(row for row in rows if not RunConfig(text=row.arm).is_baseline):
        gap = row.train_gap
        if row.cost is None or not math.isfinite(gap.mean):
            continue
        off = gap.deviation or 0.0
        marks.append(
            Mark(
                label=row.arm,
                x=row.cost.step_ratio,
                y=gap.mean,
                x_range=(row.cost.step_ratio_quartiles[0], row.cost.step_ratio_quartiles[1]),
                y_range=(gap.mean - off, gap.mean + off),
                colour=number,
            )
        )
    if not marks:
        return None
    large = max(abs(mark.y) for mark in marks) > LARGE
    return Chart(
        title="Training gap over step time",
        y_label="% of full precision's loss, with the deviation of a seed",
        x_label="step time over full precision's, with its quartiles",
        marks=marks,
        zero=True,
        y_scale="symlog" if large else "linear",
        note="Measured here, where formats are emulated." + (" The axis is logarithmic beyond 1 %." if large else ""),
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"{seeds[0]}," if len(seeds) == 1 else ",".join(map(str, seeds))
