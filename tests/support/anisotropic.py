"""Matrices as training has them: a mean, a few dominant directions, and the rest."""

from __future__ import annotations

import torch


def anisotropic(rows: int, columns: int, seed: int = 0, mean: float = 1.0, dominant: int = 4) -> torch.Tensor:
    """[rows, columns]: noise of variance 1, a row of means, and directions several times as strong."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    strong = randn(rows, dominant) @ randn(dominant, columns) * 1.5
    return randn(rows, columns) + mean * randn(1, columns) + strong
