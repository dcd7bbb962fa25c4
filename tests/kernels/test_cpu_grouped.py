"""Grouped products of exact values, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import assert_refused
from torch import Tensor

from metis_compile.kernels.cpu import ops
from metis_compile.ops.grouped import grouped_mm

ENDS = [[0, 7, 7, 40, 75], [17, 30, 31, 31, 66]]


def exact(*shape: int) -> Tensor:
    """Values as E2M1 times E4M3 has them: sums of few of their products are exact in float32."""
    return (torch.randint(-6, 7, shape) * torch.randint(1, 16, shape) / 8).bfloat16()


@pytest.mark.usefixtures("each_gemm")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("decs", [[], [0.75, 2.0**-7], [2.0**-90, 2.0**-40], [2.0**100, 2.0**28]], ids=str)
@pytest.mark.parametrize("offs", ENDS, ids=str)
def test_values(offs: list[int], decs: list[float], dtype: torch.dtype) -> None:
    """Scales whose product is no float32 number are applied one after the other."""
    at = torch.tensor(offs, dtype=dtype)
    for a, b in ((exact(75, 40), exact(5, 21, 40).mT), (exact(75, 33).T, exact(75, 21))):
        result = ops.CPU_GROUPED(a, b, at, [torch.tensor(dec) for dec in decs])
        wanted = grouped_mm(a.float(), b.float(), at).double()
        for dec in decs:
            wanted = wanted * dec
        assert torch.equal(result, wanted.float())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a": exact(75, 40).float()}, TypeError, "a must be bfloat16, got float32"),
        ({"b": exact(5, 41, 21)}, ValueError, "b must have 40 rows, as many as a has columns"),
        ({"offs": torch.zeros(5)}, TypeError, "offs must be int32 or int64, got float32"),
        ({"decs": [torch.ones(())] * 3}, ValueError, "decs must be at most 2, got 3"),
        ({"decs": [torch.ones(1)]}, ValueError, r"decs\[0\] must have shape \[\], got \[1\]"),
    ],
)
def test_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"a": exact(75, 40), "b": exact(5, 40, 21), "offs": torch.tensor(ENDS[0]), "decs": []} | change
    assert_refused(ops.CPU_GROUPED, list(given.values()), error, f"metis::cpu_grouped: {message}")
