"""`metis::of_rank(seed)` is the seed of a data-parallel rank: what one seed, drawn alike on every rank, is on this one.

The rank is read when the operator runs, and is no part of the graph.
"""

from __future__ import annotations

import torch

from metis_compile.ops.checks import check_dtype
from metis_compile.ranks import data_parallel_rank

__all__ = ["OF_RANK", "seed_of_rank"]

# An odd number, so that no two ranks have the same seed; its multiples up to 2^17 are 2^46 or more from all of those of
# the step between streams, so that no stream of one rank is one of another.
_RANK_STEP = 0xD1B54A32D192ED03

_library = torch.library.Library("metis", "FRAGMENT")
_library.define("of_rank(Tensor seed) -> Tensor")


def seed_of_rank(seed: torch.Tensor, rank: int) -> torch.Tensor:
    """seed + rank * 0xD1B54A32D192ED03, modulo 2^64: int64, as `seed`. That of rank 0 is `seed`."""
    check_dtype("metis::of_rank", "seed", seed, torch.int64)
    offset = rank * _RANK_STEP % 2**64
    return seed + (offset - 2**64 if offset >= 2**63 else offset)


@torch.library.impl(_library, "of_rank", "CompositeExplicitAutograd")
def _of_rank(seed: torch.Tensor) -> torch.Tensor:
    return seed_of_rank(seed, data_parallel_rank())


@torch.library.register_fake("metis::of_rank", lib=_library)
def _(seed: torch.Tensor) -> torch.Tensor:
    check_dtype("metis::of_rank", "seed", seed, torch.int64)
    return torch.empty_like(seed)


OF_RANK = torch.ops.metis.of_rank.default
