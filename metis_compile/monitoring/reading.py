"""Read a run back: the records that a monitor wrote, and the losses of `metis train`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metis_compile.monitoring.records import KEY

__all__ = ["ReadError", "Run", "read_run"]

REPORT = "report.json"  # in the folder of `metis train`
STATISTICS = "statistics"  # what the report calls the file of records
_NUMBERS = ("nan", "inf", "-inf")  # as text, which JSON has no numbers for


class ReadError(ValueError):
    """A file that is none of what `metis train` and a monitor write. One line that names it."""


@dataclass(kw_only=True)
class Run:
    """What was recorded of one run. records: step -> what tells a record from another of the step -> the record."""

    name: str
    records: dict[int, dict[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)  # step -> loss


def read_run(path: str | Path) -> Run:
    """A file of JSON lines, a report of `metis train` (its --json, or report.json), or its folder, with both.

    Of a record that is there twice, as after a run that was resumed, the last counts. Raises ReadError.
    """
    path = Path(path)
    run = Run(name=str(path))
    file = path / REPORT if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise ReadError(f"there is no {REPORT} in {path}: give the folder of metis train, or a file of JSON lines")
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ReadError(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    report = _whole(text)
    if report is None or "gemm" in report:
        _read_records(run, file, text)
        return run
    losses = report.get("policy", {}).get("losses") if isinstance(report.get("policy"), dict) else None
    if not isinstance(losses, list):
        raise ReadError(f"{file} is neither a report of metis train nor a monitor's JSON lines")
    run.losses = {step: float("nan") if loss is None else float(loss) for step, loss in enumerate(losses)}
    named = report.get("files", {}).get(STATISTICS)
    if named is not None:
        found = [place for place in (Path(named), file.parent / Path(named).name) if place.exists()]
        if not found:
            raise ReadError(f"{file} names the statistics {named}, which are not there")
        _read_records(run, found[0], found[0].read_text())
    return run


def _whole(text: str) -> dict[str, Any] | None:
    """The one JSON object that a text is, or None."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read_records(run: Run, path: Path, text: str) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
            key = tuple(record.get(name) for name in KEY)
            run.records.setdefault(int(record["step"]), {})[key] = _with_numbers(record)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ReadError(f"{path}, line {number}: not a record of a monitor: {line[:60]!r}") from None
    if not run.records:
        raise ReadError(f"{path} holds no records")


def _with_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_numbers(inner) for name, inner in value.items()}
    return float(value) if value in _NUMBERS else value
