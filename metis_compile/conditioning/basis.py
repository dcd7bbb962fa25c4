"""A basis from one step to the next: moved on by a power step, or made anew from a sketch every so many steps.

The power step comes before the split: the basis then fits the tensor that is split. From rows at random one step is
already as good as a plain sketch of all rows, so the first step needs nothing of its own.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metis_compile.conditioning.chain import Chain
from metis_compile.conditioning.registry import steps_of


def kept_step(split: Any) -> Any:
    """The conditioning, or the step of a chain, that keeps a basis across steps; None where there is none."""
    return next((step for step in steps_of(split) if step.keeps_basis), None)


def makes_basis(split: Any, given: bool) -> bool:
    """Whether a split makes a basis from a sketch, and needs a seed for it. given: one for the step that keeps one."""
    return any(step.makes_basis and not (given and step.keeps_basis) for step in steps_of(split))


def has_own_rank(split: Any) -> bool:
    """Whether the rank of the basis that a split keeps is a number, whatever the tensor."""
    rank = kept_step(split).rank
    return isinstance(rank, int)


def with_kept_rank(split: Any, rank: int) -> Any:
    """The same split with a number as the rank of the basis that it keeps; itself where its class has no such field."""
    step = kept_step(split)
    if not is_dataclass(step) or "rank" not in {field.name for field in fields(step)}:
        return split
    changed: Any = replace(step, rank=rank)  # type: ignore[type-var]
    if isinstance(split, Chain):
        return replace(split, steps=tuple(changed if each is step else each for each in split.steps))
    return changed


def next_basis(
    split: Any,
    x: Tensor,
    basis: Tensor,
    count: Tensor | None = None,
    *,
    axis: int,
    seed: Tensor | None,
    stream: int = 0,
) -> list[Tensor]:
    """The basis to split x with, and the next count where there is one.

    basis: [k, columns], what the last step used; at first anything of full rank. count: steps since the basis was made
    anew, 1 and up, and below 1 at first; given where the split refreshes its basis, or does not track x, with a seed.
    """
    step = kept_step(split)
    refresh, moved = step.refresh, basis
    if step.track:
        how = {"axis": axis, "seed": seed, "stream": stream} if isinstance(split, Chain) else {}
        moved = split.update_basis(x, basis, **how)
    if count is None:
        return [moved]
    stale = (count < 1) | (count >= refresh) if refresh > 0 else count < 1
    return [_refreshed(split, x, seed, moved, stale, stream), torch.where(stale, 1.0, count + 1)]


def _refreshed(split: Any, x: Tensor, seed: Tensor | None, kept: Tensor, stale: Tensor, stream: int) -> Tensor:
    if isinstance(split, Chain):
        split, x, stream = split.before_basis(x, seed, stream)
    if hasattr(split, "refreshed_basis"):
        return split.refreshed_basis(x, seed, kept, stale, stream=stream)
    return torch.where(stale, split.fresh_basis(x, seed, stream=stream), kept)
