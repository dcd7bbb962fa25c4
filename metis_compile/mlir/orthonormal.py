"""Q of a thin QR in plain torch, by Householder reflections with LAPACK's signs, for compilers that have no QR.

Column j is reflected onto the j-th axis by H_j = 1 - tau_j v_j v_j^T, v_j[j] = 1, as LAPACK's `geqrf` and `larfg` do:

    beta = -sign(a_j) norm(a_j..),  tau = (beta - a_j) / beta,  v = a_j.. / (a_j - beta),  Q = H_1 H_2 ... H_k I[:, :k]

A column that is zero below its diagonal has tau = 0. The result is that of torch.linalg.qr, to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def householder(y: Tensor) -> Tensor:
    """[n, k], k <= n -> Q [n, k], orthonormal columns. Unrolled over the columns."""
    n, k = y.shape
    rows = torch.arange(n, device=y.device).unsqueeze(1)
    rest, reflections = y, []
    for j in range(k):
        column = torch.where(rows >= j, rest[:, j : j + 1], 0.0)
        largest = torch.amax(torch.abs(column), dim=0, keepdim=True)
        column = column / torch.where(largest > 0, largest, 1.0)  # subnormals would lose v's bits
        head = column[j : j + 1]
        below = torch.where(rows > j, column, 0.0)
        tail = torch.sum(below**2, dim=0, keepdim=True)
        norm = torch.sqrt(head**2 + tail)
        reflects = tail > 0
        beta = torch.where(reflects, torch.where(head < 0, norm, -norm), 1.0)
        tau = torch.where(reflects, (beta - head) / beta, 0.0)
        v = torch.where(reflects, below / (head - beta), 0.0) + (rows == j).to(y.dtype)
        reflections.append((tau, v))
        rest = rest - v @ (tau * (v.mT @ rest))
    q = (rows == torch.arange(k, device=y.device)).to(y.dtype)
    for tau, v in reversed(reflections):
        q = q - v @ (tau * (v.mT @ q))
    return q
