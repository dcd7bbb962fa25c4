"""The adaptive spectral learning rate of the first version of metis (arXiv 2509.00404 v1), for output gradients.

    s_i' = 2 s_i / (1 + s_i / s_1)        the largest singular value stays, the small ones are up to doubled,

and the residual, which holds the smallest, is multiplied by the limit of the rule, 2, or by another factor. It changes
the gradient on purpose: what comes out is no longer equal to what went in.
"""

from __future__ import annotations

import torch

from metis_compile.conditioning.base import Conditioned


def adapt_rate(split: Conditioned, *, residual_factor: float = 2.0) -> Conditioned:
    """The split with the singular values s_i of left @ right replaced by s_i', and the residual multiplied.

    Single directions come from k x k matrices alone: with right right^T = T T^T (Cholesky), T^-1 right has orthonormal
    rows, and the eigenvectors U of T^T (left^T left) T are those of left @ right; left becomes
    left T U diag(s'/s) U^T T^-1. A left or right that is not finite stays so.
    """
    residual, left, right = split
    identity = torch.eye(left.shape[1], dtype=torch.float64, device=left.device)
    scale = torch.clamp(torch.amax(torch.abs(left), dim=0), min=torch.finfo(torch.float32).tiny).amax()
    unit = torch.nan_to_num(left / scale, nan=0.0, posinf=0.0, neginf=0.0).to(torch.float64)
    rows = torch.nan_to_num(right, nan=0.0, posinf=0.0, neginf=0.0).to(torch.float64)
    factor = torch.linalg.cholesky_ex(torch.mm(rows, rows.mT) + 1e-12 * identity)[0]
    gram = torch.mm(torch.mm(factor.mT, torch.mm(unit.mT, unit)), factor)
    squares, vectors = torch.linalg.eigh(gram)
    s = torch.sqrt(torch.clamp(squares, min=0.0))
    ratio = torch.where(s[-1] > 0, s / s[-1], 1.0)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    change = torch.mm(torch.mm(factor, vectors * (2 / (1 + ratio))), torch.mm(vectors.mT, inverse))
    return Conditioned(residual * residual_factor, torch.mm(left, change.to(torch.float32)), right)
