"""The dual-range regularizer: weights are kept from growing large, and from vanishing below what a format can hold.

Source: arXiv 2509.00404, first version, which gives the form and no values for l1, l2 and eps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def dual_range_regularizer(model: nn.Module, l1: float, l2: float, eps: float) -> Tensor:
    """l1 * mean(w^2) + l2 * mean(1 / (w^2 + eps)), over all elements of all weights: a term to add to the loss.

    Weights are trainable parameters of two or more dimensions, those of embeddings aside; one that two modules share
    counts once. l1, l2: 0 or more. eps: above 0; a weight of 0 costs l2 / eps.
    Returns a float32 scalar with gradients. Raises ValueError for a coefficient out of range, or no weights.
    """
    for name, value in (("l1", l1), ("l2", l2)):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value!r}")
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps!r}")
    weights = list(_weights(model))
    count = sum(weight.numel() for weight in weights)
    if count == 0:
        raise ValueError("model must have trainable weights of two or more dimensions, got none")
    total = torch.zeros((), device=weights[0].device)
    for weight in weights:
        square = weight.to(torch.float32).square()
        total = total + (l1 * square + l2 / (square + eps)).sum().to(total.device)
    return total / count


def _weights(model: nn.Module) -> Iterator[nn.Parameter]:
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.dim() >= 2 and parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield parameter
