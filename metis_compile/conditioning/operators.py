"""Where a compiler puts operators in place of what they do: residuals, rounded factors, bases and their steps.

Written out, these are most of the nodes of a conditioned graph. Eagerly they are plain torch; code that traces a
conditioning installs operators whose implementation is that plain torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from metis_compile.numerics import QuantSpec


class Operators(Protocol):
    """What a compiler brings along."""

    def rounded(self, x: Tensor, spec: QuantSpec, axis: int, seed: Tensor | None, stream: int) -> Tensor:
        """x quantized and back, float32; noise as `metis_compile.numerics.uniform_noise` draws it."""
        ...

    def to_bfloat16(self, x: Tensor) -> Tensor:
        """x, float32, as bfloat16: to nearest, ties to even."""
        ...

    def fresh_basis(
        self, split: Any, x: Tensor, seed: Tensor, stream: int, rank: int, kept: Tensor | None, stale: Tensor | None
    ) -> Tensor:
        """That of `split`, a Spectral; `kept`, and no sketch made, where `stale`, one bool, is there and false."""
        ...

    def power_step(self, x: Tensor, basis: Tensor, left: Tensor | None) -> Tensor:
        """The basis after one power step: see `Spectral.update_basis`."""
        ...

    def residual(self, x: Tensor, mean: Tensor | None, left: Tensor | None, right: Tensor | None) -> Tensor:
        """x - mean - left @ right, float32; of mean and factors at least one is there."""
        ...


_operators: ContextVar[Operators | None] = ContextVar("metis_operators", default=None)


def operators() -> Operators | None:
    """The operators installed by :func:`using`, if any."""
    if torch.compiler.is_dynamo_compiling():  # which cannot trace a ContextVar; users' own code has none installed
        return None
    return _operators.get()


@contextmanager
def using(given: Operators | None) -> Iterator[None]:
    """In this context and thread, conditionings call these operators; None: they are plain torch."""
    token = _operators.set(given)
    try:
        yield
    finally:
        _operators.reset(token)
