"""Conditionings one after the other, each splitting the residual of the one before: the mean, then the spectrum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metis_compile.conditioning.base import Conditioned, Conditioning, as_conditioning
from metis_compile.conditioning.factors import STREAMS, check_matrix

STREAMS_PER_STEP = 8 * STREAMS


@dataclass(frozen=True, kw_only=True)
class Chain(Conditioning):
    """left and right hold the factors of all steps, side by side; one step at most may keep a basis."""

    steps: tuple[Conditioning, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(map(as_conditioning, self.steps)))
        if len(self.steps) < 2:
            raise ValueError(f"a chain must have two steps or more, got {len(self.steps)}")
        if len(self.steps) > 8:
            raise ValueError(f"a chain must have eight steps or fewer, got {len(self.steps)}")
        partners = {step.partner for step in self.steps}
        if len(partners) > 1:
            raise ValueError(f"all steps must have the same partner, got {', '.join(map(repr, sorted(partners)))}")
        if sum(step.keeps_basis for step in self.steps) > 1:
            raise ValueError("one step of a chain may keep a basis across steps, got several")
        if any(step.compensate for step in self.steps[:-1]):
            raise ValueError("compensate must be false for all steps of a chain but the last")

    @property
    def partner(self) -> str:  # type: ignore[override]  # of the steps, no field
        return str(self.steps[0].partner)

    @property
    def compensate(self) -> bool:  # type: ignore[override]
        return self.steps[-1].compensate

    @property
    def keeps_basis(self) -> bool:
        return any(step.keeps_basis for step in self.steps)

    @property
    def needs_seed(self) -> bool:
        return any(step.needs_seed for step in self.steps)

    @property
    def depends_on_axis(self) -> bool:
        return any(step.depends_on_axis for step in self.steps)

    def with_rank(self, rows: int, columns: int, other: int | None = None) -> Chain:
        """Each step with its own."""
        return replace(self, steps=tuple(step.with_rank(rows, columns, other) for step in self.steps))

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        """See :class:`Conditioning`; the basis is for the step that keeps one."""
        check_matrix(x, axis)
        lefts, rights = [], []
        for number, step in enumerate(self.steps):
            given = basis if step.keeps_basis else None
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
            if step.keeps_basis:
                return step, x, here
            x = step.split(x, axis=axis, seed=seed, stream=here).residual
        raise ValueError("a basis must be kept by one of the steps, got none that does")
