"""Conditionings one after the other, each splitting the residual of the one before: the mean, then the spectrum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metis_compile.conditioning.base import Conditioned, Conditioning, keeps_basis, needs_seed
from metis_compile.conditioning.factors import STREAMS, check_matrix
from metis_compile.conditioning.rank import with_rank

STREAMS_PER_STEP = 8 * STREAMS


@dataclass(frozen=True, kw_only=True)
class Chain:
    """left and right hold the factors of all steps, side by side; one step at most may keep a basis."""

    steps: tuple[Any, ...]  # Conditioning; Any because settings are read from it as from the others

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if len(self.steps) < 2:
            raise ValueError(f"a chain must have two steps or more, got {len(self.steps)}")
        if len(self.steps) > 8:
            raise ValueError(f"a chain must have eight steps or fewer, got {len(self.steps)}")
        partners = {getattr(step, "partner", "high") for step in self.steps}
        if len(partners) > 1:
            raise ValueError(f"all steps must have the same partner, got {', '.join(map(repr, sorted(partners)))}")
        if sum(keeps_basis(step) for step in self.steps) > 1:
            raise ValueError("one step of a chain may keep a basis across steps, got several")
        if any(getattr(step, "compensate", False) for step in self.steps[:-1]):
            raise ValueError("compensate must be false for all steps of a chain but the last")

    @property
    def partner(self) -> str:
        return str(getattr(self.steps[0], "partner", "high"))

    @property
    def keeps_basis(self) -> bool:
        return any(keeps_basis(step) for step in self.steps)

    @property
    def needs_seed(self) -> bool:
        return any(needs_seed(step) for step in self.steps)

    @property
    def depends_on_axis(self) -> bool:
        return any(getattr(step, "depends_on_axis", False) for step in self.steps)

    def with_rank(self, rows: int, columns: int, other: int | None = None) -> Chain:
        """Each step with its own."""
        return replace(self, steps=tuple(with_rank(step, rows, columns, other) for step in self.steps))

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        """See :class:`Conditioning`; the basis is for the step that keeps one."""
        check_matrix(x, axis)
        lefts, rights = [], []
        for number, step in enumerate(self.steps):
            given = basis if keeps_basis(step) else None
            x, left, right = step.split(x, axis=axis, seed=seed, stream=stream + number * STREAMS_PER_STEP, basis=given)
            lefts.append(left)
            rights.append(right)
        return Conditioned(x, torch.cat(lefts, dim=1), torch.cat(rights, dim=0))

    def fresh_basis(self, x: Tensor, seed: Tensor | None, *, stream: int = 0, rank: int | None = None) -> Tensor:
        """That of the step that keeps one, of what is left of x there."""
        step, x, stream = self.before_basis(x, seed, stream)
        return step.fresh_basis(x, seed, stream=stream, rank=rank)

    def update_basis(
        self, x: Tensor, basis: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0
    ) -> Tensor:
        """That of the step that keeps one; the other arguments as for the split whose basis it is."""
        step, x, _ = self.before_basis(x, seed, stream, axis)
        return step.update_basis(x, basis)

    def before_basis(self, x: Tensor, seed: Tensor | None, stream: int, axis: int = 1) -> tuple[Any, Tensor, int]:
        """The step that keeps a basis, the residual that it gets, and its stream."""
        for number, step in enumerate(self.steps):
            here = stream + number * STREAMS_PER_STEP
            if keeps_basis(step):
                return step, x, here
            conditioning: Conditioning = step
            x = conditioning.split(x, axis=axis, seed=seed, stream=here).residual
        raise ValueError("a basis must be kept by one of the steps, got none that does")
