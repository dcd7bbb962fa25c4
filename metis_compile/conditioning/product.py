"""A GEMM of conditioned operands, written out: what a graph rewrite and a fused kernel have to give.

With A = R + L F contracted against B, each operand seen with the contracted axis last;
along axis 0, A^T = R^T + F^T L^T, F^T stands for L and L^T for F:

    A B^T  ~=  Q(R_A H) Q(R_B H)^T  +  L_A (F_A P(B)^T)  +  (P'(R_A) F_B^T) L_B^T

P(B) is the partner of A's factors, all of B: as it is ("high"), in E4M3 with a scale per row, or ("residual") as the
other terms hold it, Q(R_B) + L_B F_B. P'(R_A), that of B's factors, is R_A: as it is, in E4M3, or Q(R_A).
Under a Hadamard transform H the others read Q(R H) H^T for Q(R): the same codes, transformed back.
Where a split compensates, L stands for L' of `compensation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metis_compile.conditioning.base import Conditioned, Conditioning
from metis_compile.conditioning.compensation import compensated_left
from metis_compile.conditioning.factors import partner_spec
from metis_compile.conditioning.hadamard import hadamard, inverse_hadamard
from metis_compile.numerics import QuantSpec, fake_quantize


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One operand of a GEMM, seen with the contracted axis last; all float32."""

    x: Tensor  # [free, contracted]: as it was
    residual: Tensor  # [free, contracted]: as it was left by the split; x where there is none
    rounded: Tensor  # [free, contracted, or a multiple of 16 under a Hadamard transform]: the quantized residual
    plain: Tensor  # [free, contracted]: the same transformed back
    outer: Tensor | None  # [free, k]
    inner: Tensor | None  # [k, contracted]
    partner: str
    spec: QuantSpec | None


def prepare(
    x: Tensor,
    *,
    axis: int,
    spec: QuantSpec | None = None,
    split: Conditioned | None = None,
    partner: str = "high",
    signs: Tensor | None = None,
    noise: Tensor | None = None,
    compensate: Conditioning | None = None,
) -> Prepared:
    """A matrix that is contracted along `axis`, split and quantized.

    x: [rows, columns]. spec: None quantizes nothing. signs: [16], for a Hadamard transform. noise: of the
    (transformed) residual's noise_shape, for rounding at random. compensate: what made `split`, if it compensates.
    """
    x = x.to(torch.float32)
    residual = x if split is None else split.residual
    turned = residual if signs is None else hadamard(residual, axis, signs)
    rounded = turned if spec is None else fake_quantize(turned, spec, axis, noise)
    plain = rounded if signs is None else inverse_hadamard(rounded, axis, signs, residual.shape[axis])
    if split is not None and compensate is not None and compensate.compensate:
        split = split._replace(left=compensated_left(compensate, split.left, split.right, x, plain))
    outer, inner = (None, None) if split is None else (split.left, split.right)
    if axis == 0:
        x, residual, rounded, plain = (t.mT for t in (x, residual, rounded, plain))
        outer, inner = (None, None) if split is None else (split.right.mT, split.left.mT)
    return Prepared(
        x=x, residual=residual, rounded=rounded, plain=plain, outer=outer, inner=inner, partner=partner, spec=spec
    )


def product(a: Prepared, b: Prepared) -> Tensor:
    """A B^T, float32: [free of a, free of b]."""
    result = a.rounded @ b.rounded.mT
    if a.outer is not None and a.inner is not None:
        whole = b.plain if b.outer is None or b.inner is None else b.plain + b.outer @ b.inner
        result = result + a.outer @ (a.inner @ _partner(b.x, whole, a.partner, b.spec).mT)
    if b.outer is not None and b.inner is not None:
        result = result + (_partner(a.residual, a.plain, b.partner, a.spec) @ b.inner.mT) @ b.outer.mT
    return result


def _partner(high: Tensor, as_residual: Tensor, partner: str, spec: QuantSpec | None) -> Tensor:
    if partner == "residual":
        return as_residual
    chosen = None if spec is None else partner_spec(partner, spec)
    return high if chosen is None else fake_quantize(high, chosen, 1)
