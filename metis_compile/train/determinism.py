"""Equal runs, equal bits: a resumed run then has exactly the curve it would have had."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

__all__ = ["deterministic"]

MEMORY: Any = torch.utils.deterministic  # its attributes are properties that type checkers do not see


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Make torch's results repeatable on the CPU while entered; the settings before are put back.

    Without it an embedding's gradient is summed in the order in which threads come to it. On a GPU nothing is
    changed: there it would slow the matmuls that the run measures, or refuse some.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = MEMORY.fill_uninitialized_memory
    if torch.device(device).type == "cpu":
        torch.use_deterministic_algorithms(True)
        MEMORY.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        MEMORY.fill_uninitialized_memory = fill
