"""Factors that take in what quantizing the residual takes along the directions that are kept.

A split x = R + L F is exact, and so is its fold; but the product reads Q(R) + L F, whose error lies along F as it lies
along all else. With F orthonormal

    L' = L + (x - Q(R) - L F) F^T        x - Q(R) - L' F = (x - Q(R) - L F) (1 - F^T F)

has none left along F, for two thin products. It costs no more to multiply with. What the directions carry most of is
what later layers are sensitive to: a softmax multiplies errors of keys along the mean of the queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.conditioning.base import Conditioning
from metis_compile.conditioning.chain import Chain


def compensated_left(split: Conditioning, left: Tensor, right: Tensor, x: Tensor, quantized: Tensor) -> Tensor:
    """L', [rows, k] float32, of left [rows, k], right [k, columns], what was split and its quantized residual.

    Of a chain, the columns of the last step alone. The residual itself is not read: a kernel may never store it.
    """
    others = right.shape[0] - split.steps[-1].factor_count(right.shape[1]) if isinstance(split, Chain) else 0
    last, towards = (left[:, others:], right[others:].mT) if others else (left, right.mT)
    # Products alone, with what they are added to: no kernel for a sum of so few elements.
    last = torch.addmm(last, left, torch.mm(right, towards), alpha=-1)
    last = torch.addmm(torch.addmm(last, x, towards), quantized, towards, alpha=-1)
    return torch.cat([left[:, :others], last], 1) if others else last
