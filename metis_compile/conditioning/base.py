"""What every conditioning makes of a matrix: a residual and a product of two thin factors."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Conditioned(NamedTuple):
    """x ~= residual + left @ right; equal, to rounding, unless quantized factors are not folded into the residual."""

    residual: Tensor  # [rows, columns] float32
    left: Tensor  # [rows, k] float32
    right: Tensor  # [k, columns] float32


class Conditioning(Protocol):
    """How an operand is split; a policy file may name any class that has this method: ``"package.module:Class"``.

    The class is a frozen dataclass of keyword-only fields, each a setting of the policy file with a default. Optional
    attributes: `partner`, of PARTNERS, "high" without it; `needs_seed`, whether split draws random numbers, other than
    for a basis that it makes, True without it; `depends_on_axis`, whether it heeds the axis, False without it;
    `with_rank`, what to use for an operand of given sizes; `keeps_basis`, whether a basis lives across steps, False
    without it, for which it has `fresh_basis` and `update_basis`. All as :class:`Spectral` has them.
    """

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        """Split a matrix that a GEMM contracts along `axis`.

        x: [rows, columns], floating-point. seed: int64, one element, where the split draws random numbers: they depend
        on seed and stream alone, and use streams `stream + n * 2**24`, n from 1 to 7. basis: [k, columns] for a
        conditioning that keeps one; None otherwise, and where there is none yet.
        Plain torch that traces: no branch on values, none on symbolic sizes. A NaN or Inf in x stays in the residual
        or in a factor.
        """
        ...


def needs_seed(conditioning: Any) -> bool:
    """Whether it draws random numbers, other than for a basis that it makes."""
    return bool(getattr(conditioning, "needs_seed", True))


def keeps_basis(conditioning: Any) -> bool:
    """Whether a basis of it lives across steps."""
    return bool(getattr(conditioning, "keeps_basis", False))
