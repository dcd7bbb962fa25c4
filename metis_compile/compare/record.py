"""What one arm gave from one seed, as a file: a comparison goes on from those that are there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metis_compile.measure.folder import writing
from metis_compile.train.errors import TrainError
from metis_compile.train.report import finite

__all__ = ["Record", "read", "write"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished trial."""

    arm: str  # the RunConfig's text
    seed: int
    settings: dict[str, Any]  # train.Settings, without policy and seed
    text: str  # digest of the corpus
    policy: str  # digest of the policy
    losses: list[float | None]  # of every step, nats per byte; None where it was not finite
    validation_loss: float | None
    saved_bytes: int  # what one forward keeps for backward, parameters left out
    step_seconds: float | None  # median in that process, whatever else ran
    compile_seconds: float  # the first step
    threads: int
    versions: dict[str, str]

    def mean_loss(self, last: int) -> float:
        """Mean training loss over the ``last`` steps; NaN if one of them was not finite."""
        chosen = self.losses[-last:]
        return sum(float("nan") if loss is None else loss for loss in chosen) / len(chosen)


def write(path: Path, record: Record) -> None:
    """Write the file whole or not at all."""
    partial = path.with_suffix(".partial")
    values = finite(asdict(record))
    values["losses"] = [None if loss is None else round(loss, 6) for loss in values["losses"]]
    with writing(path, TrainError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(values, allow_nan=False) + "\n")
        partial.replace(path)


def read(path: Path) -> Record:
    """What :func:`write` wrote. Raises TrainError for a file that is something else."""
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise TrainError(f"{path} is not a finished trial ({error}): delete it to run it again") from None
