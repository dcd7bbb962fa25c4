"""A conditioning such as a user may write, for policies to name as "own_conditioning:LargestColumns"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metis_compile.conditioning import Conditioned


@dataclass(frozen=True, kw_only=True)
class LargestColumns:
    """Splits off the columns with the largest elements. It says nothing of itself: no partner, no seed, no axis."""

    count: int = 1

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        x = x.to(torch.float32)
        count = min(self.count, x.shape[1])
        columns = x.abs().amax(0).topk(count).indices
        left = x[:, columns]
        right = torch.nn.functional.one_hot(columns, x.shape[1]).to(torch.float32).reshape(count, x.shape[1])
        return Conditioned(x - left @ right, left, right)
