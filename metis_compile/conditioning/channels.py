"""Hot channels: the columns of the largest mean magnitude, kept from what quantizing does to them.

Source: the hot-channel patch of arXiv 2602.02047. With I the columns that are kept,

    take = "error":  x Y^T  ~=  Q(x) Q(Y)^T + (x - Q(x))[:, I] P(Y)[:, I]^T      what they lose is added back
    take = "whole":  x Y^T  ~=  Q(x without I) Q(Y)^T + x[:, I] P(Y)[:, I]^T     they leave the blocks that they rule

Either way the product reads x[:, I] exactly. P(Y) is the partner of `conditioning/product.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metis_compile.conditioning.base import Conditioned, Conditioning
from metis_compile.conditioning.factors import check_matrix, check_partner
from metis_compile.conditioning.validation import check_name

TAKES = ("error", "whole")


@dataclass(frozen=True, kw_only=True)
class Channels(Conditioning):
    """right holds a row of the identity for each column that is kept, left what is taken out of it."""

    share: float = 0.0625  # of the columns, at least one
    take: str = "error"  # "error": what quantizing takes from them; "whole": the columns themselves
    partner: str = "high"  # what left is multiplied by

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not isinstance(self.share, (int, float)) or not 0 < self.share < 1:
            raise ValueError(f"share must be a number above 0 and below 1, got {self.share!r}")
        check_name("take", self.take, TAKES)
        check_partner(self.partner)

    @property
    def needs_seed(self) -> bool:
        return False

    @property
    def compensate(self) -> bool:  # type: ignore[override]  # of `take`, no field
        return self.take == "error"

    def factor_count(self, columns: int) -> int:
        return max(1, int(self.share * columns))

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        """See :class:`Conditioning`. The columns are the tensor's own in each step."""
        check_matrix(x, axis)
        x = x.to(torch.float32)
        count = self.factor_count(x.shape[1])
        kept = torch.topk(torch.mean(torch.abs(x), dim=0), count).indices
        right = x.new_zeros((count, x.shape[1])).scatter(1, kept[:, None], 1.0)
        if self.take == "error":
            return Conditioned(x, x.new_zeros((x.shape[0], count)), right)
        return Conditioned(torch.where(right.sum(0) > 0, 0.0, x), torch.index_select(x, 1, kept), right)
