"""What every conditioning makes of a matrix: a residual and a product of two thin factors."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Conditioned(NamedTuple):
    """x ~= residual + left @ right; equal, to rounding, unless quantized factors are not folded into the residual."""

    residual: Tensor  # [rows, columns] float32
    left: Tensor  # [rows, k] float32
    right: Tensor  # [k, columns] float32


class Conditioning(Protocol):
    """How an operand is split; a policy file may name any class that has this method: ``"package.module:Class"``.

    The class is a frozen dataclass of keyword-only fields, each a setting of the policy file with a default.
    """

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        """Split a matrix that a GEMM contracts along `axis`.

        x: [rows, columns], floating-point. seed: int64, one element, where the split draws random numbers: they depend
        on seed and stream alone, and use streams `stream + n * 2**24`, n >= 1. basis: [k, columns] for a conditioning
        that keeps one across steps, which then has `fresh_basis` and `update_basis` too; None where there is none.
        Plain torch that traces: no branch on values, none on symbolic sizes. A NaN or Inf in x stays in the residual
        or in a factor.
        """
        ...
