"""The mean over tokens, split off: left = ones [rows, 1], right = mu [1, columns] (averis, arXiv 2603.10444)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.conditioning.base import Conditioned, Conditioning
from metis_compile.conditioning.factors import (
    STREAMS,
    canonical_factors,
    check_matrix,
    check_partner,
    is_random,
    rounded_factor,
)
from metis_compile.conditioning.residual import residual
from metis_compile.conditioning.validation import check_flag


@dataclass(frozen=True, kw_only=True)
class Mean(Conditioning):
    """x = residual + 1 mu, mu the mean of x over its rows, the local batch's tokens."""

    factors: str = "bfloat16"  # of mu, with scales of its own along its columns: "high", "bfloat16" or a format
    fold: bool = True  # the residual is x minus the rounded mu: its rounding error is then not lost
    partner: str = "high"  # what mu is multiplied by: the other operand "high", as "e4m3 row" or as the "residual" is

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", canonical_factors(self.factors))
        check_flag("fold", self.fold)
        check_partner(self.partner)

    @property
    def needs_seed(self) -> bool:
        return is_random(self.factors)

    @property
    def depends_on_axis(self) -> bool:
        return False

    @property
    def cross_terms_are_zero(self) -> bool:
        """Whether the residual's columns sum to zero (to rounding), so that products with them may be left out."""
        return self.factors == "high" or not self.fold

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        """See :class:`Conditioning`. mu is rounded in blocks along its columns whichever axis is contracted."""
        check_matrix(x, axis)
        x = x.to(torch.float32)
        mu = row_mean(x)
        stored = rounded_factor(mu, self.factors, 1, seed, stream + STREAMS)
        return Conditioned(residual(x, stored if self.fold else mu), x.new_ones((x.shape[0], 1)), stored)


def row_mean(x: Tensor) -> Tensor:
    """[1, columns] float32: the mean over the rows of float32 x; 0 of no rows."""
    if statically_known_true(x.shape[0] == 0):
        return x.new_zeros((1, x.shape[1]))
    return torch.mean(x, dim=0, keepdim=True)
