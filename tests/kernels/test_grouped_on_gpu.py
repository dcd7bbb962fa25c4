"""Grouped products of packed operands on a GPU: each template, and torch's own product, against the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_operands import RTOL, SPECS, Packed, packed
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from metis_compile.compat import autotune, inductor_config
from metis_compile.kernels.gemm.aten_fallback import grouped_product
from metis_compile.kernels.gemm.grouped_op import GROUPED_GEMM

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

ENDS = [[0, 7, 7, 300, 601], [170, 301, 317, 317, 590]]
FP8_RTOL = 2**-10  # see test_gemm_on_gpu
BFLOAT16 = 2**-8  # torch's product rounds its sum


def operands(name: str, grouped: str) -> tuple[Packed, Packed]:
    if grouped == "rows":
        return packed((601, 320), SPECS[name]), packed((5, 72, 320), SPECS[name])
    return packed((152, 601), SPECS[name], transposed=True), packed((72, 601), SPECS[name], transposed=True)


def on_gpu(a: Packed) -> Packed:
    return a._replace(parts=[part.cuda() for part in a.parts])


def assert_near(actual: Tensor, wanted: Tensor, rtol: float) -> None:
    torch.testing.assert_close(actual.cpu(), wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


@pytest.mark.parametrize("offs", ENDS, ids=str)
@pytest.mark.parametrize("grouped", ["rows", "k"])
@pytest.mark.parametrize("name", SPECS)
def test_templates(
    name: str, grouped: str, offs: list[int], nan_filled: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metis_compile.kernels.gemm import lowering

    lowering.register_gemm()
    monkeypatch.setattr(lowering, "autotune", lambda n, c, *given, **how: autotune(n, c[:-1], *given, **how))
    a, b = operands(name, grouped)

    def product(a: Packed, b: Packed, offs: Tensor) -> Tensor:
        return GROUPED_GEMM(*a, *b, offs)

    at = torch.tensor(offs, dtype=torch.int32)
    torch.compiler.reset()
    with inductor_config.patch(force_disable_caches=True):
        result, codes = run_and_get_code(torch.compile(product, dynamic=False), on_gpu(a), on_gpu(b), at.cuda())
    assert "triton_tem" in "\n".join(codes)
    native = name.startswith("fp8") and grouped == "rows"
    assert_near(result, product(a, b, at), FP8_RTOL if native else RTOL)


@pytest.mark.parametrize("offs", ENDS, ids=str)
@pytest.mark.parametrize("grouped", ["rows", "k"])
@pytest.mark.parametrize("name", SPECS)
def test_without_a_template(name: str, grouped: str, offs: list[int]) -> None:
    a, b = operands(name, grouped)
    at = torch.tensor(offs, dtype=torch.int32)
    wanted = GROUPED_GEMM(*a, *b, at)
    out = torch.full(wanted.shape, torch.nan, device="cuda")
    sides: dict[str, Any] = {key: (x.spec, x.axis, x.contract) for key, x in (("a", a), ("b", b))}
    parts = [*on_gpu(a).parts, *on_gpu(b).parts]
    assert_near(grouped_product(*parts, at.cuda(), **sides, out=out), wanted, BFLOAT16)
