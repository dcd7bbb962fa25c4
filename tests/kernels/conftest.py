"""Products as CPUs with bfloat16 instructions and without make them."""

from __future__ import annotations

import pytest

from metis_compile.compat import bf16_gemm
from metis_compile.kernels.cpu import launch as calls


@pytest.fixture(params=["bfloat16 instructions", "float32"])
def each_gemm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which products of exact values are summed, the first only where the CPU has it."""
    if request.param == "float32":
        monkeypatch.setattr(calls, "bf16_gemm", lambda: None)
    elif bf16_gemm() is None:
        pytest.skip("this CPU has no bfloat16 instructions, or torch no GEMM; float32 is tested")
