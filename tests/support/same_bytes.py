"""Kernels against the numerics, byte for byte."""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.numerics import QuantSpec


def assert_same(actual: Tensor, expected: Tensor, what: str) -> None:
    """The same bytes, but for the bits of a float32 NaN: those depend on the order in which hardware met them."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    if torch.equal(_bytes(actual), _bytes(expected)):
        return
    assert actual.dtype.itemsize > 1, f"{what}: {(_bytes(actual) != _bytes(expected)).sum()} codes differ"
    a, b = actual.to(torch.float32), expected.to(torch.float32)
    same = ((a == b) & (a.signbit() == b.signbit())) | (a.isnan() & b.isnan())
    assert same.all(), f"{what}: {(~same).sum()} of {same.numel()} differ, {a[~same][:4]} for {b[~same][:4]}"


def _bytes(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)


def assert_same_parts(actual: list[Tensor], expected: list[Tensor], spec: QuantSpec, what: str = "") -> None:
    """What `encode` returns."""
    assert len(actual) == len(expected), what
    for i, pair in enumerate(zip(actual, expected, strict=True)):
        assert_same(*pair, f"{what} part {i}")
