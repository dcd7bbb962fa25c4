"""Where records go: a file of JSON lines, a function, a TensorBoard writer, or several of these."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metis_compile.monitoring.records import numbers_in

__all__ = ["Destination", "destination", "path_of_rank"]

Destination = Callable[[Sequence[dict[str, Any]]], None]


def destination(to: Any, rank: int, is_start: bool) -> Destination:
    """What is called with the records of each sampled step.

    to: None, a path, a function of a list of records, an object with add_scalar(tag, value, step) such as
    torch.utils.tensorboard's SummaryWriter, or a list of these. is_start: whether a file that is there is emptied.
    Raises TypeError for anything else, OSError that names it for a file that can't be written.
    """
    if to is None:
        return _nowhere
    if isinstance(to, (str, os.PathLike)):
        return JsonLines(path_of_rank(Path(to), rank), is_start)
    if hasattr(to, "add_scalar"):
        return Scalars(to)
    if isinstance(to, (list, tuple)):
        return Several([destination(each, rank, is_start) for each in to])
    if callable(to):
        return to  # type: ignore[no-any-return]
    raise TypeError(
        "metis: records go to a path, a function of a list of records, an object with add_scalar (a TensorBoard "
        f"SummaryWriter), or a list of these, got {type(to).__name__}"
    )


def path_of_rank(path: Path, rank: int) -> Path:
    """The file of one process: the first has the name that was given, the others `name.rank1.jsonl`, ..."""
    return path if rank == 0 else path.with_suffix(f".rank{rank}{path.suffix}")


def _nowhere(records: Sequence[dict[str, Any]]) -> None:
    return None


class JsonLines:
    """A line of JSON for each record. What JSON has no number for is a text: "nan", "inf"."""

    def __init__(self, path: Path, is_start: bool) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w" if is_start else "a"):
                pass
        except OSError as error:
            raise OSError(f"metis: cannot write the statistics to {path}: {error.strerror or error}") from None

    def __call__(self, records: Sequence[dict[str, Any]]) -> None:
        lines = [json.dumps(_plain(record), allow_nan=False) + "\n" for record in records]
        try:
            with open(self.path, "a") as file:
                file.writelines(lines)
        except OSError as error:
            raise OSError(f"metis: cannot write the statistics to {self.path}: {error.strerror or error}") from None


class Scalars:
    """A scalar for each number of a record: metis/SITE/fprop/activation/error."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def __call__(self, records: Sequence[dict[str, Any]]) -> None:
        for record in records:
            place = [record["site"] or "model", record["gemm"], record["operand"]]
            place += [record["side"]] if record["operand"] == "activation" and record["side"] == "right" else []
            place += [f"call{record['call']}"] if record["call"] else []
            for name, value in numbers_in(record).items():
                self.writer.add_scalar("/".join(["metis", *place, *name.split(".")]), value, record["step"])


class Several:
    def __init__(self, destinations: Sequence[Destination]) -> None:
        self.destinations = destinations

    def __call__(self, records: Sequence[dict[str, Any]]) -> None:
        for each in self.destinations:
            each(records)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
