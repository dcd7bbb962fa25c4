"""How many directions a spectral split takes out: a number, a share, or as many as some extra work pays for."""

from __future__ import annotations

import math

import torch

AUTO = "auto"
EXTRA_WORK = 0.05  # "auto": of the three GEMMs' floating-point operations, of X and G together
LARGEST_AUTO = 32


def check_rank(rank: object) -> None:
    """Raises ValueError unless rank is a whole number from 1, a share below 1, or "auto"."""
    if rank == AUTO:
        return
    if isinstance(rank, bool) or not isinstance(rank, (int, float)) or not 0 < rank < math.inf:
        raise ValueError(f"rank must be a whole number from 1, a share below 1, or 'auto', got {rank!r}")
    if isinstance(rank, float) and rank >= 1:
        raise ValueError(f"rank must be below 1 when it is a share, got {rank!r}; write {int(rank)} for a number")


def resolve_rank(rank: int | float | str, rows: int, columns: int, other: int | None = None) -> int:
    """The rank of the split of a [rows, columns] operand; sizes may be symbolic, and put no guard on anything.

    rows: the tokens of an activation or gradient. other: the width on the far side of its linear (`out` for an
    activation, `in` for a gradient), of all that read it together; None: as `columns`.
    A number stays; a share is that of min(rows, columns), rounded; "auto" keeps the extra work within 5% of a linear's
    three GEMMs, where its activation and its gradient are split and each basis follows in a power step over all rows:
    0.05 / (2 (1/columns + 1/other) + 4 / (3 rows)), rounded down, from 1 to 32. Compensating one of them costs as much
    again as its power step: up to 6.7% in all, 5.8% in a square linear, or less than 5% again where a power step reads
    a tenth of the rows. The sketch of a first basis does not count. Never more than `columns`. A symbolic
    size counts as its hint, one without a hint as no limit: the result is an int, fixed when the graph is compiled.
    """
    tall, wide = size_hint(rows), size_hint(columns)
    far = wide if other is None else size_hint(other)
    if rank == AUTO:
        work = 2 * (1 / max(wide, 1) + 1 / max(far, 1)) + 4 / (3 * max(tall, 1))
        count = LARGEST_AUTO if work == 0 else min(int(EXTRA_WORK / work), LARGEST_AUTO)
    elif isinstance(rank, float):
        smaller = min(tall, wide)
        count = LARGEST_AUTO if math.isinf(smaller) else round(rank * smaller)
    else:
        count = int(rank)
    return int(max(1, min(count, max(wide, 1))))


def size_hint(size: int) -> float:
    """A size, or a symbolic size's hint, or infinity."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    return int(size.node.hint) if size.node.has_hint() else math.inf
