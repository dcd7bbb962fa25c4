"""Outliers, clamped, and what that takes from them kept apart: left = x - clamp(x), right = the identity.

Source: the outlier clamping and compensation of arXiv 2501.17116. The bounds are quantiles of all elements of the
tensor, its own in each step: those at the positions floor(q n) and floor((1 - q) n) of its n elements in order. What is
clamped away is sparse, 2 elements of 100 at q = 0.99, and is multiplied in float32. Kernels for sparse products would
do little work for it; here it is a dense product, as dear as the large one in float32: for what the method does to a
model, and not to its speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.conditioning.base import Conditioned, Conditioning
from metis_compile.conditioning.factors import check_matrix, check_partner

_FINEST = 10**6  # parts of a quantile: whole numbers find its place in any number of elements


@dataclass(frozen=True, kw_only=True)
class Clamp(Conditioning):
    """x = clamp(x, lower, upper) + remainder @ identity."""

    quantile: float = 0.99  # above 0.5 and below 1: where the upper bound lies; the lower one as far from the other end
    partner: str = "high"  # what the remainder is multiplied by, the other operand as it is, in E4M3, or as quantized

    def __post_init__(self) -> None:
        if (
            isinstance(self.quantile, bool)
            or not isinstance(self.quantile, (int, float))
            or not 0.5 < self.quantile < 1
        ):
            raise ValueError(f"quantile must be a number above 0.5 and below 1, got {self.quantile!r}")
        check_partner(self.partner)

    @property
    def needs_seed(self) -> bool:
        return False

    @property
    def right_is_identity(self) -> bool:
        return True

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        """See :class:`Conditioning`."""
        check_matrix(x, axis)
        x = x.to(torch.float32)
        identity = torch.eye(x.shape[1], dtype=torch.float32, device=x.device)
        if statically_known_true(x.numel() == 0):
            return Conditioned(x, torch.zeros_like(x), identity)
        residual = torch.minimum(torch.maximum(x, self._bound(x, 1 - self._share)), self._bound(x, self._share))
        return Conditioned(residual, x - residual, identity)

    @property
    def _share(self) -> Fraction:
        return Fraction(self.quantile).limit_denominator(_FINEST)

    def _bound(self, x: Tensor, share: Fraction) -> Tensor:
        """[1]: the element with floor(share n) of all n below it, in order."""
        count = x.numel()
        below = count * share.numerator // share.denominator
        if isinstance(count, int):
            return torch.kthvalue(x.reshape(-1), below + 1, keepdim=True).values
        return torch.sort(x.reshape(-1)).values.narrow(0, below, 1)
