"""Where a compiler puts operators in place of what they do: rounding a factor.

Written out, roundings are most of the nodes of a conditioned graph. Eagerly they are plain torch; code that traces a
conditioning installs operators whose implementation is that plain torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

from metis_compile.numerics import QuantSpec


class Operators(Protocol):
    """What a compiler brings along."""

    def rounded(self, x: Tensor, spec: QuantSpec, axis: int, seed: Tensor | None, stream: int) -> Tensor:
        """x quantized and back, float32; noise as `metis_compile.numerics.uniform_noise` draws it."""
        ...


_operators: ContextVar[Operators | None] = ContextVar("metis_operators", default=None)


def operators() -> Operators | None:
    """The operators installed by :func:`using`, if any."""
    if torch.compiler.is_dynamo_compiling():  # which cannot trace a ContextVar; users' own code has none installed
        return None
    return _operators.get()


@contextmanager
def using(given: Operators) -> Iterator[None]:
    """In this context and thread, conditionings call these operators."""
    token = _operators.set(given)
    try:
        yield
    finally:
        _operators.reset(token)
