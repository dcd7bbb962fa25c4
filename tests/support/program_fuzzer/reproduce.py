"""Runs a printed case again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from program_fuzzer.oracles import ORACLES


@dataclass(frozen=True, kw_only=True)
class Printed:
    module: type[torch.nn.Module]
    inputs: Callable[[int], Any]
    dtype: str
    dynamic: bool
    patterns: bool

    def build(self) -> tuple[torch.nn.Module, Callable[[int], Any]]:
        return self.module().to(getattr(torch, self.dtype)), self.inputs


def reproduce(
    module: type[torch.nn.Module],
    inputs: Callable[[int], Any],
    policy: str,
    oracle: str,
    *,
    dtype: str,
    dynamic: bool,
    patterns: bool,
) -> None:
    """Raises as the case did."""
    ORACLES[oracle](Printed(module=module, inputs=inputs, dtype=dtype, dynamic=dynamic, patterns=patterns), policy)
    print("all holds")
