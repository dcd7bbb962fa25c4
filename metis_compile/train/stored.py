"""The page of a run that is done, from its report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metis_compile.html_report import Page, ReportError, policy_texts, read_statistics
from metis_compile.policy.schedule import load
from metis_compile.train.page import explanations, page
from metis_compile.train.settings import Settings

__all__ = ["read_json", "stored_run"]

REPORT = "report.json"


def stored_run(run: Path, *, statistics: Sequence[dict[str, Any]] = (), blame: Mapping[str, Any] | None = None) -> Page:
    """run: the folder of ``metis train``, or the JSON in it. The model is looked at anew, without weights.

    statistics: where none are given, those of the run's own monitor. Raises ReportError for what is no report, and for
    one whose policy was changed since; PolicyError and TrainError where its settings or its policy can't be had any
    more. Code that a policy names is not imported.
    """
    file = run / REPORT if run.is_dir() else run
    report = read_json(file, f"neither a report of metis train nor of metis compare: give its folder, or its {REPORT}")
    try:
        settings = Settings.from_dict(report["settings"])
        stored = [(entry["name"], entry["text"]) for entry in report.get("policy_files", [])]
        page(report, policy=stored)  # all that is read of it is there
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ReportError(f"{file} is no report of metis train") from None
    texts = policy_texts(settings.policy, trust=False)
    if stored and texts != stored:
        raise ReportError(f"{file}: the policy {settings.policy!r} was changed since; put back what the report has")
    named = (report.get("files") or {}).get("statistics")
    if not statistics and named is not None:
        there = [place for place in (Path(named), file.parent / Path(named).name) if place.is_file()]
        statistics = read_statistics(there[0]) if there else ()
    explained = explanations(settings, load(settings.policy, trust=False))
    return page(report, policy=texts, explained=explained, statistics=statistics, blame=blame)


def read_json(file: Path, otherwise: str) -> dict[str, Any]:
    """The JSON object in a file. Raises ReportError, which says that the file is ``otherwise``."""
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise ReportError(f"cannot read {file}: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ReportError(f"{file} is {otherwise}")
    return found
