"""What a calibration found."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

from metis_compile.policy import Policy

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of a whole policy. cost: a step's time over that without quantization, as predicted. loss: the relative change
    of the mean loss. gradient: ||g - g0|| / ||g0|| of all gradients."""

    cost: float
    loss: float
    gradient: float


@dataclass(frozen=True, kw_only=True)
class Considered:
    """A treatment of one operand, alone quantized."""

    loss: float
    gradient: float


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What one operand of a product was given, in all layers of a group."""

    module: str  # a name with a star for each number
    blocks: str | None  # a part of the depth; None for all, or what is between those that have one
    gemm: str
    operand: str
    recipe: str  # of a preset, or "high"
    treatment: str
    considered: Mapping[str, Considered]  # recipe -> what it does; those that do the same are under the first


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A policy within a budget, and what led to it. Prints as a table."""

    policy: Policy
    device: str
    batches: int
    budget: str  # "cost" or "error"
    limit: float  # the budget
    error: str  # what was to be small: "loss" or "gradient"
    loss: float  # mean, in high precision
    predicted: Figures  # the sum over what was measured alone; the cost as predicted for the whole policy
    measured: Figures  # the whole policy, on the same batches
    steps: int  # how far from what the sums said the policy is, because of what it costs or errs as a whole
    candidates: Mapping[str, Figures]  # each candidate for everything, "high" first
    choices: tuple[Chosen, ...]
    text: str = field(repr=False)  # the policy file

    def to_toml(self) -> str:
        """The policy as a file with comments that say why: `Policy.from_toml(found.to_toml()) == found.policy`."""
        return self.text

    @property
    def table(self) -> str:
        """As it prints."""
        return str(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; the policy is under `toml`."""
        values = asdict(self)
        del values["policy"]
        values["toml"] = values.pop("text")
        return values

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        Console(file=text, width=None if known else 120).print(self)
        return text.getvalue().rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from metis_compile.calibration.table import tables

        yield from tables(self)
