"""Kernels compile for GPUs that are not there, and what does not is an error."""

from __future__ import annotations

import pytest
from cross_compile import CrossCompileError, cross_compile

triton = pytest.importorskip("triton")
tl = triton.language


@triton.jit
def dot_kernel(x, y, out, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at)))


@triton.jit
def wrong_kernel(x, N: tl.constexpr):
    tl.store(x + tl.arange(0, N), tl.no_such_function(N))


@pytest.mark.parametrize(
    ("capability", "instruction"),
    [(80, "mma.sync.aligned"), (90, "wgmma.mma_async"), (100, "tcgen05.mma"), (120, "mma.sync.aligned")],
)
def test_instructions(capability: int, instruction: str) -> None:
    signature = {"x": "*bf16", "y": "*bf16", "out": "*fp32"}
    built = cross_compile(dot_kernel, signature, {"N": 64}, capability)
    assert instruction in built.ptx
    assert f".target sm_{capability}" in built.ptx
    assert built.shared > 0


def test_an_error_names_what_is_wrong() -> None:
    with pytest.raises(CrossCompileError, match="no_such_function"):
        cross_compile(wrong_kernel, {"x": "*fp32"}, {"N": 64}, 90)
