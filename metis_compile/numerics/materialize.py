"""Where per-block tensors ask to become buffers.

A compiler that fuses would otherwise recompute a block's scale for each of its elements. Eagerly this is the
identity; code that traces the numerics installs an operator that tells its compiler to store the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_marker: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("metis_materialize", default=None)


def materialize(t: Tensor) -> Tensor:
    """``t``, passed through the marker installed by :func:`materializing`, if any."""
    if torch.compiler.is_dynamo_compiling():  # which cannot trace a ContextVar; users' own code has no marker
        return t
    marker = _marker.get()
    return t if marker is None else marker(t)


@contextmanager
def materializing(marker: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """In this context and thread, pass every per-block tensor of the numerics through ``marker``."""
    token = _marker.set(marker)
    try:
        yield
    finally:
        _marker.reset(token)
