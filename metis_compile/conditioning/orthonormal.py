"""Orthonormal columns spanning those of a tall matrix, also where these are dependent, zero, tiny or huge.

Columns are scaled to unit norm first, without overflow or underflow on the way. Then

- "householder", torch.linalg.qr: always orthonormal, whatever it is given. The fastest on the CPU.
- "cholesky": two passes of Cholesky QR with the Gram matrix in float64, and 1e-6 of fixed noise added to the columns
  before, so that dependent ones become independent by more than float64's rounding. All of it is products and
  one small factorization, which is what a GPU is fast at, where Householder's QR is a long chain of small kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.numerics import uniform_noise

METHODS = ("householder", "cholesky")
_PERTURBATION = 1e-6
_FP32_MAX = torch.finfo(torch.float32).max
_FP32_TINY = torch.finfo(torch.float32).tiny


def orthonormalize(y: Tensor, method: str | None = None) -> Tensor:
    """[n, k] float32, k <= n -> [n, k] float32, Q^T Q = 1 to about 1e-6, spanning y's columns.

    Directions that y lacks (its columns are dependent, zero, not finite or subnormal) are filled with others.
    method: of METHODS; None: "householder" on the CPU, "cholesky" elsewhere.
    """
    if method is None:
        method = "householder" if y.device.type == "cpu" else "cholesky"
    y = unit_columns(y)[0]
    return torch.linalg.qr(y)[0] if method == "householder" else _cholesky(y)


def unit_columns(y: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of norm 1, and their norms [1, k]. A column that is zero, subnormal or not finite becomes zero."""
    if statically_known_true(y.shape[0] == 0):
        return y, y.new_zeros((1, y.shape[1]))
    largest = torch.amax(torch.abs(y), dim=0, keepdim=True)
    usable = (largest >= _FP32_TINY) & (largest <= _FP32_MAX)
    scaled = torch.where(usable, y / largest, 0.0)
    norm = torch.linalg.vector_norm(scaled, dim=0, keepdim=True)
    return torch.where(usable, scaled / norm, 0.0), torch.where(usable, norm * largest, 0.0)


def _cholesky(y: Tensor) -> Tensor:
    n, k = y.shape
    noise = uniform_noise(torch.zeros(1, dtype=torch.int64, device=y.device), 0, [n, k])
    q = (y + (noise - 0.5) * (_PERTURBATION * (12 / n) ** 0.5)).to(torch.float64)
    identity = torch.eye(k, dtype=torch.float64, device=y.device)
    for _ in range(2):
        factor = torch.linalg.cholesky_ex(q.mT @ q + (1e-15 * k) * identity)[0]
        q = q @ torch.linalg.solve_triangular(factor, identity, upper=False).mT
    return q.to(torch.float32)
