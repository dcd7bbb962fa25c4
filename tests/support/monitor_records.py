"""A record as a monitor writes it."""

from __future__ import annotations

from typing import Any


def record(step: int = 0, **fields: Any) -> dict[str, Any]:
    """Of one activation."""
    about = {"step": step, "rank": 0, "site": "up", "op": "linear", "gemm": "fprop", "call": 0}
    operand = {"operand": "activation", "side": "left", "format": "nvfp4 1x16 nearest", "split": None, "hadamard": None}
    return {**about, **operand, "amax": 2.0, "error": 0.1, **fields}
