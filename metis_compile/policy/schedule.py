"""A schedule: which policy holds in which part of a training run, read from TOML."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from metis_compile.policy.document import Document, read_reference, read_text
from metis_compile.policy.errors import PolicyError, show, unknown_key
from metis_compile.policy.policy import Policy
from metis_compile.policy.toml_positions import Path as KeyPath

__all__ = ["Schedule", "Stage", "load"]

STAGE_KEYS = ("policy", "until")
MOST_STAGES = 16  # each is compiled


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run. until: the optimizer step, from 0, at which it ends, or a share of all steps; None: the end."""

    policy: Policy
    until: int | float | None = None

    def end(self, steps: int | None) -> float:
        """The step at which the stage ends, of `steps` in all. Raises ValueError for a share of an unknown number."""
        if self.until is None:
            return math.inf
        if isinstance(self.until, int):
            return self.until
        if steps is None:
            raise ValueError(
                f"metis: a stage ends at {self.until} of all steps, and how many there are is not known: "
                "metis_compile.advance(model, step, steps=...)"
            )
        return math.ceil(self.until * steps)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Stages of a training run, each with its policy; the last lasts to the end.

    Equality, hash and digest go by meaning; names and files do not count. Raises PolicyError for no stage, for a stage
    without an end that is not the last, and for ends that do not rise.
    """

    stages: tuple[Stage, ...]
    name: str = field(default="schedule", compare=False)  # what reports call it: "run.toml"
    source: str | None = field(default=None, compare=False)  # the path it was read from

    def __post_init__(self) -> None:
        if not 1 <= len(self.stages) <= MOST_STAGES:
            raise PolicyError(f"a schedule must have 1 to {MOST_STAGES} stages, got {len(self.stages)}", key="stage")
        before: dict[type, int | float] = {}
        for number, stage in enumerate(self.stages, start=1):
            key, until = f"stage {number}, until", stage.until
            if until is None:
                if number < len(self.stages):
                    raise PolicyError("every stage but the last must say where it ends: until = ...", key=key)
                continue
            if number == len(self.stages):
                raise PolicyError("the last stage lasts to the end and must not say until", key=key, value=until)
            _check_until(until, key)
            if until <= before.get(type(until), 0):
                problem = f"must be after the stage before, which ends at {before[type(until)]}, got {until}"
                raise PolicyError(problem, key=key, value=until)
            before[type(until)] = until

    @classmethod
    def load(cls, reference: str | os.PathLike[str] | Schedule, *, trust: bool = True) -> Schedule:
        """The schedule in a file; a `Schedule` is returned as it is. ``trust`` and the errors are as in `Policy.load`.

        Raises PolicyError for a file without stages too.
        """
        if isinstance(reference, Schedule):
            return reference
        return cls._of(read_reference(reference, trust=trust), Path(os.fspath(reference)).expanduser().parent)

    @classmethod
    def from_toml(
        cls, text: str, *, name: str = "<text>", folder: str | os.PathLike[str] = ".", trust: bool = True
    ) -> Schedule:
        """A schedule from the text of its file; policies' paths in it are relative to ``folder``."""
        return cls._of(read_text(text, name, Path(folder), trust=trust), Path(folder))

    @classmethod
    def _of(cls, document: Document, folder: Path) -> Schedule:
        tables = document.data.get("stage")
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            problem = f"stages are written as [[stage]], in double brackets, got {show(tables)}"
            raise document.error(PolicyError(problem, value=tables), ("stage",), "stage")
        for key in document.data:
            if key != "stage":
                problem = "a file with stages has nothing else: recipes and rules go into a file that a stage names"
                raise document.error(PolicyError(problem, value=key, allowed=("stage",)), (key,), key)
        stages = tuple(_stage(document, folder, index, table) for index, table in enumerate(tables))
        try:
            return cls(stages=stages, name=document.name, source=document.file)
        except PolicyError as error:
            index = int(error.key.split()[1].rstrip(",")) - 1 if error.key and " " in error.key else 0
            at: KeyPath = ("stage", index, "until")
            raise document.error(error, at if "until" in tables[index] else at[:2], error.key or "stage") from None

    def stage_at(self, step: int, steps: int | None = None) -> int:
        """The index of the stage that optimizer step `step`, from 0, of `steps` in all belongs to.

        Raises ValueError where a stage ends at a share of the steps and `steps` is None.
        """
        return next(index for index, stage in enumerate(self.stages) if step < stage.end(steps))

    def write(self, path: Path) -> None:
        """Writes the schedule to `path`, and the policy of each stage to a file beside it."""
        document = tomlkit.document()
        tables = tomlkit.aot()
        for number, stage in enumerate(self.stages, start=1):
            file = path.with_name(f"{path.stem}-stage{number}.toml")
            file.write_text(stage.policy.to_toml())
            table = tomlkit.table()
            table.add("policy", file.name)
            if stage.until is not None:
                table.add("until", stage.until)
            tables.append(table)
        document.add("stage", tables)
        path.write_text(tomlkit.dumps(document))

    def digest(self) -> str:
        """A SHA-256 in hex of what the schedule means."""
        meaning = [[repr(stage.until), stage.policy.digest()] for stage in self.stages]
        return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()


def load(reference: str | os.PathLike[str] | Policy | Schedule, *, trust: bool = True) -> Policy | Schedule:
    """The policy, or the schedule of policies, that a preset's name or a path stands for.

    Raises PolicyError as `Policy.load` does.
    """
    if isinstance(reference, (Policy, Schedule)):
        return reference
    document = read_reference(reference, trust=trust)
    if "stage" in document.data:
        return Schedule.load(reference, trust=trust)
    return Policy.load(reference, trust=trust)


def _stage(document: Document, folder: Path, index: int, table: dict[str, Any]) -> Stage:
    path: KeyPath = ("stage", index)
    place = f"stage {index + 1}"
    for key in table:
        if key not in STAGE_KEYS:
            raise document.error(unknown_key("a stage", key, STAGE_KEYS), (*path, key), f"{place}, {key}")
    if "policy" not in table:
        error = PolicyError('a stage must name a policy: policy = "NAME"', allowed=("policy",))
        raise document.error(error, path, f"{place}, policy")
    until = table.get("until")
    try:
        if until is not None:
            _check_until(until, None)
    except PolicyError as error:
        raise document.error(error, (*path, "until"), f"{place}, until") from None
    try:
        policy = Policy._of(read_reference(table["policy"], folder=folder, trust=document.trust))
    except PolicyError as error:
        if error.file is not None:  # a mistake in that file
            raise
        raise document.error(error, (*path, "policy"), f"{place}, policy") from None
    return Stage(policy=policy, until=until)


def _check_until(until: object, key: str | None) -> None:
    steps = isinstance(until, int) and not isinstance(until, bool) and until >= 1
    share = isinstance(until, float) and 0 < until < 1
    if not (steps or share):
        problem = f"must be a number of steps, such as 1000, or a share of them between 0 and 1, got {show(until)}"
        raise PolicyError(problem, key=key, value=until)
