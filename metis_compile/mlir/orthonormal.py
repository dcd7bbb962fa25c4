"""Q of a thin QR in plain torch, by Householder reflections with LAPACK's signs, for compilers that have no QR.

Column j is reflected onto the j-th axis by H_j = 1 - tau_j v_j v_j^T, v_j[j] = 1, as LAPACK's `geqrf` and `larfg` do:

    beta = -sign(a_j) norm(a_j..),  tau = (beta - a_j) / beta,  v = a_j.. / (a_j - beta),  Q = H_1 H_2 ... H_k I[:, :k]

A column that is zero below its diagonal has tau = 0. The result is that of torch.linalg.qr, to rounding.

Q does not change where columns are scaled, so that what is left of each is scaled to a largest element of 1 before
every reflection. What is left of dependent columns, 2^-24 of them each time, would become subnormal otherwise, and
then the result would depend on whether the machine flushes subnormals to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = torch.finfo(torch.float32).tiny  # what is below counts as zero, flushed or not


def householder(y: Tensor) -> Tensor:
    """[n, k], k <= n -> Q [n, k], orthonormal columns. Unrolled over the columns."""
    n, k = y.shape
    rows = torch.arange(n, device=y.device).unsqueeze(1)
    rest, reflections = y, []
    for j in range(k):
        rest = torch.where(rows >= j, rest, 0.0)
        largest = torch.amax(torch.abs(rest), dim=0, keepdim=True)
        rest = torch.where(largest < _SMALLEST, 0.0, rest / torch.where(largest < _SMALLEST, 1.0, largest))
        column = rest[:, j : j + 1]
        head, below = column[j : j + 1], torch.where(rows > j, column, 0.0)
        norm = torch.sqrt(torch.sum(column**2, dim=0, keepdim=True))
        reflects = torch.amax(torch.abs(below), dim=0, keepdim=True) >= _SMALLEST
        beta = torch.where(reflects, torch.where(head <= -_SMALLEST, norm, -norm), 1.0)
        tau = torch.where(reflects, (beta - head) / beta, 0.0)
        v = torch.where(reflects, below / (head - beta), 0.0) + (rows == j).to(y.dtype)
        reflections.append((tau, v))
        rest = rest - v @ (tau * (v.mT @ rest))
    q = (rows == torch.arange(k, device=y.device)).to(y.dtype)
    for tau, v in reversed(reflections):
        q = q - v @ (tau * (v.mT @ q))
    return q
