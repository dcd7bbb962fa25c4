"""The page of a comparison that is done, from its compare.json and its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metis_compile.compare.page import page
from metis_compile.compare.record import Record, read
from metis_compile.compare.run_config import BASELINE, RunConfig
from metis_compile.compare.summary import from_json
from metis_compile.html_report import Page, ReportError, policy_texts
from metis_compile.inspection.explain import Explanation
from metis_compile.policy.schedule import load
from metis_compile.train.page import explanations
from metis_compile.train.settings import Settings
from metis_compile.train.stored import read_json

__all__ = ["stored_comparison"]


def stored_comparison(
    run: Path, *, statistics: Sequence[dict[str, Any]] = (), blame: Mapping[str, Any] | None = None
) -> Page:
    """run: the folder of ``metis compare``, or the compare.json in it. Models are looked at anew, without weights.

    Raises ReportError for what is no comparison, for one without its trials, and for a policy that was changed since.
    Code that a policy names is not imported.
    """
    folder = run if run.is_dir() else run.parent
    file = folder / "compare.json"
    report = read_json(file, "no comparison of metis compare")
    try:
        settings, machine, rows = report["settings"], report["machine"], from_json(report["rows"])
        same = {name: value for name, value in settings.items() if name != "branch"}
        title = str(report["title"])
    except (KeyError, TypeError, AttributeError):
        raise ReportError(f"{file} is no comparison of metis compare") from None
    place = {row.arm: number for number, row in enumerate(rows)}
    found = [
        record for path in sorted((folder / "trials").glob("*.json")) if (record := read(path)).settings == settings
    ]
    records = [r for r in found if RunConfig(text=r.arm).name in place]
    if not any(record.arm == BASELINE for record in records):
        raise ReportError(f"{folder / 'trials'} has no trials of {file.name}: a report needs their losses")
    records.sort(key=lambda record: (place[RunConfig(text=record.arm).name], record.seed))
    policies: dict[str, Record] = {RunConfig(text=r.arm).policy: r for r in records}
    explained: list[tuple[str, Explanation]] = []
    texts = []
    for name, record in policies.items():
        if name == BASELINE:
            continue
        policy = load(name, trust=False)
        if policy.digest() != record.policy:
            raise ReportError(f"{folder}: the policy {name!r} was changed since it was compared")
        explained += explanations(Settings.from_dict({**same, "policy": name}), policy)
        texts.append((RunConfig(text=name).name, policy_texts(name, trust=False)))
    return page(
        records,
        rows,
        settings,
        machine,
        title=title,
        explained=explained,
        policies=texts,
        statistics=statistics,
        blame=blame,
    )
