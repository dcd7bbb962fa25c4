"""The two flat tensors of a graph's state: one that its forward reads and writes, and one that its backward does."""

from __future__ import annotations

import torch
from torch import Tensor

_SEED = 2025  # of the rows that bases start from
NAMES = ("forward", "backward")
State = tuple[Tensor, Tensor]  # of the forward part of a graph, and of its backward part


def new_state(sizes: tuple[int, ...], device: torch.device) -> State:
    """Values between -1 and 1, always the same: rows of full rank, for power steps to start from."""
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator("cpu").manual_seed(_SEED)
        forward, backward = (torch.rand(n, generator=generator).mul_(2).sub_(1).to(device) for n in sizes)
    return forward, backward
