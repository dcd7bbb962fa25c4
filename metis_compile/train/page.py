"""A run of ``metis train`` as a page of HTML."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metis_compile.html_report import (
    Chart,
    Figure,
    Line,
    Page,
    Section,
    Spectrum,
    Table,
    blame_section,
    cost_section,
    policy_section,
    quantized_section,
    rerun_section,
    spectra_section,
    statistics_section,
)
from metis_compile.inspection.explain import Explanation, explain
from metis_compile.policy import Policy, Schedule
from metis_compile.train.plot import running_mean
from metis_compile.train.report import gap, mebibytes, milliseconds
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import build

__all__ = ["explanations", "page", "settings_command"]

Texts = Sequence[tuple[str, str]]


def explanations(settings: Settings, policy: Policy | Schedule) -> list[tuple[str, Explanation]]:
    """What `explain` says of the run's model, built without memory: one for each stage of a schedule, by name."""
    if isinstance(policy, Schedule):
        ends = ["to the end" if stage.until is None else f"until {stage.until}" for stage in policy.stages]
        return [
            (f"{stage.policy.name.removesuffix('.toml')}, {end}", _explanation(settings, stage.policy))
            for stage, end in zip(policy.stages, ends, strict=True)
        ]
    return [(policy.name.removesuffix(".toml"), _explanation(settings, policy))]


def _explanation(settings: Settings, policy: Policy) -> Explanation:
    with torch.device("meta"):
        model = build(settings)
        tokens = torch.zeros(settings.batch, settings.context, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        return explain(model, tokens, policy=policy)


def page(
    report: Mapping[str, Any],
    *,
    policy: Texts = (),
    explained: Sequence[tuple[str, Explanation]] = (),
    spectra: Sequence[Spectrum] = (),
    statistics: Sequence[dict[str, Any]] = (),
    blame: Mapping[str, Any] | None = None,
) -> Page:
    """report: of `Report.to_dict`. The rest, where it is given, is a section each."""
    settings, full, mine = report["settings"], report["full_precision"], report["policy"]
    sections = [_losses(report)]
    left_out = []
    if explained:
        sections.append(quantized_section(explained))
    if statistics:
        sections.append(statistics_section(statistics))
    else:
        left_out.append(
            "Not in this report: statistics over time, which metis train --monitor FILE --html has; metis report "
            "--statistics FILE adds those of a file."
        )
    if spectra:
        sections.append(spectra_section(spectra))
    else:
        left_out.append(
            "Not in this report: spectra of activations. metis train --html has them of policies with splits."
        )
    if blame is not None:
        sections.append(blame_section(blame))
    else:
        left_out.append("Not in this report: which operand costs the loss. metis report RUN --blame FILE adds it.")
    sections.append(cost_section([_measured(report)], explained))
    if policy:
        sections.append(policy_section([(mine["label"], policy)]))
    text = report["text"]
    facts = [("text", text["source"]), ("its SHA-256", text["sha256"][:16]), ("device", report["device"])]
    sections.append(rerun_section(settings_command("train", settings), report.get("machine", {}), facts))
    return Page(
        title=f"{mine['label']} beside full precision",
        lead=f"{settings['model']} of {report['parameters']:,} parameters, {settings['steps']} steps of "
        f"{settings['batch'] * settings['context']:,} tokens, {settings['dtype']}, seed {settings['seed']}: "
        "the same weights to begin with, and the same batches.",
        figures=[
            Figure(
                label="validation gap",
                value=_percent(report["validation_gap_percent"]),
                note="of full precision's loss",
            ),
            Figure(
                label="train gap",
                value=_percent(report["train_gap_percent"]),
                note=f"last {report['averaged_steps']} steps",
            ),
            Figure(label="step time", value=_times(report["step_time_ratio"]), note="of full precision's, here"),
            Figure(
                label="saved for backward",
                value=_times(report["saved_bytes_ratio"]),
                note=f"{mebibytes(mine['saved_bytes'])} of {mebibytes(full['saved_bytes'])}",
            ),
        ],
        sections=sections,
        left_out=left_out,
    )


def settings_command(command: str, settings: Mapping[str, Any], *arguments: str) -> str:
    """The command line that runs these settings again."""
    words = ["metis", command, *arguments]
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _losses(report: Mapping[str, Any]) -> Section:
    sides = [report["full_precision"], report["policy"]]
    losses = [[float("nan") if loss is None else loss for loss in side["losses"]] for side in sides]
    steps = range(1, len(losses[0]) + 1)
    window = max(1, len(losses[0]) // 20)
    smooth = [running_mean(values, window) for values in losses]
    lines = [
        line
        for i, (side, values, mean) in enumerate(zip(sides, losses, smooth, strict=True))
        for line in (
            Line(label="", x=steps, y=values, colour=i, faint=True),
            Line(label=side["label"], x=steps, y=mean, colour=i, broad=i == 0),
        )
    ]
    gaps = [gap(policy, full) for full, policy in zip(*smooth, strict=True)]
    averaged = report["averaged_steps"]
    rows = [
        (f"train loss, last {averaged} steps", *_row(sides, "train_loss"), _percent(report["train_gap_percent"])),
        ("validation loss", *_row(sides, "validation_loss"), _percent(report["validation_gap_percent"])),
    ]
    return Section(
        id="losses",
        title="Losses",
        lead="In nats per byte of text. One seed shows what a run looks like, not what a policy is worth: "
        "metis compare trains several.",
        blocks=[
            Chart(
                title="Training loss",
                y_label="nats per byte",
                x_label="step",
                lines=lines,
                note=f"Heavy lines: mean of {window} steps." if window > 1 else "",
            ),
            Chart(
                title="Gap",
                y_label="% over full precision" + (f", between means of {window} steps" if window > 1 else ""),
                x_label="step",
                lines=[Line(label="", x=steps, y=gaps, colour=1)],
                zero=True,
                short=True,
            ),
            Table(headings=("", *(side["label"] for side in sides), "gap"), rows=rows),
        ],
    )


def _row(sides: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return ["not finite" if side[name] is None else f"{side[name]:.4f}" for side in sides]


def _measured(report: Mapping[str, Any]) -> Table:
    full, mine = report["full_precision"], report["policy"]
    return Table(
        title="Measured in this run",
        headings=("", full["label"], mine["label"], "ratio"),
        rows=[
            (
                "step, median",
                milliseconds(full["step_seconds"]),
                milliseconds(mine["step_seconds"]),
                _times(report["step_time_ratio"]),
            ),
            (
                "saved for backward",
                mebibytes(full["saved_bytes"]),
                mebibytes(mine["saved_bytes"]),
                _times(report["saved_bytes_ratio"]),
            ),
            ("first step, which compiles", f"{full['compile_seconds']:.1f} s", f"{mine['compile_seconds']:.1f} s", "-"),
        ],
        note="The policy compiles second. Formats are emulated: a step here is not what one takes on FP4 tensor cores.",
    )


def _percent(value: float | None) -> str:
    return "diverged" if value is None else f"{value:+.2f} %"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
