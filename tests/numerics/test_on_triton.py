"""What Inductor makes of the numerics for a GPU rounds as eager torch does."""

from __future__ import annotations

import re
from typing import Any

import torch
from cross_compile import cross_compile_generated
from torch import nn
from torch._inductor.utils import run_and_get_code


def test_division_is_exact_and_no_product_is_contracted(triton_on_cpu: Any) -> None:
    """One scale per tensor is what Inductor compiles; in the interpreter everything rounds exactly, so look at PTX."""
    compiled = torch.compile(
        nn.Linear(48, 40, bias=False), backend="metis", options={"policy": "fp8", "max_autotune_gemm": False}
    )
    _, (code,) = run_and_get_code(compiled, torch.randn(20, 48))
    ptx = "".join(built.ptx for built in cross_compile_generated(code, 90).values())
    assert "div.rn.f32" in ptx
    assert not re.search(r"div\.(full|approx)|\.ftz", ptx)
    assert re.search(r"mul(\.rn)?\.f32.*0f3F7FFFFF", ptx)  # 1 - 2^-24: see numerics.elements
    assert not re.search(r"fma.*0f[3B]F7FFFFF", ptx)
