"""Factors that take in what quantizing the residual takes along the directions that are kept.

A split x = R + L F is exact, and so is its fold; but the product reads Q(R) + L F, whose error R - Q(R) lies along F as
it lies along all else. With F orthonormal

    L' = L + (R - Q(R)) F^T        Q(R) + L' F = x - (R - Q(R)) (1 - F^T F)

has none left along F, for two thin products. It costs no more to multiply with. What the directions carry most of is
what later layers are sensitive to: a softmax multiplies errors of keys along the mean of the queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metis_compile.conditioning.chain import Chain
from metis_compile.conditioning.conditioned import Conditioning


def compensates(split: Conditioning | None) -> bool:
    """Whether `split`, or the last step of a chain, asks for it."""
    last = split.steps[-1] if isinstance(split, Chain) else split
    return bool(getattr(last, "compensate", False))


def compensated_left(split: Conditioning, left: Tensor, right: Tensor, residual: Tensor, quantized: Tensor) -> Tensor:
    """L', [rows, k] float32, of left [rows, k], right [k, columns] and the residual before and after quantizing it.

    Of a chain, the columns of the last step alone.
    """
    if isinstance(split, Chain):
        count = split.steps[-1].rank
        right = right[right.shape[0] - count :]
    towards = right.mT
    correction = torch.mm(residual, towards) - torch.mm(quantized, towards)
    others = left.shape[1] - correction.shape[1]
    return left + (F.pad(correction, (others, 0)) if others else correction)
