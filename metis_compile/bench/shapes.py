"""Sizes and formats that the benchmarks of kernels are given as texts."""

from collections.abc import Sequence

from metis_compile.bench.errors import BenchError
from metis_compile.numerics import QuantSpec

__all__ = ["sizes_of", "spec_of"]


def sizes_of(text: str, names: Sequence[str]) -> list[int]:
    """``8192x4096`` as numbers, one for each of ``names``. Raises BenchError."""
    parts = text.split("x")
    if len(parts) != len(names) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise BenchError(f"a shape must be {'x'.join(names)} in numbers above 0, got {text!r}")
    return [int(part) for part in parts]


def spec_of(text: str) -> QuantSpec:
    """A format's name, or the full text of a QuantSpec. Raises BenchError."""
    try:
        return QuantSpec.parse(text) if " " in text else QuantSpec.make(text)
    except ValueError as error:
        raise BenchError(str(error)) from None
