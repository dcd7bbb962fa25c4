"""What the tests of Triton kernels stand on: interpreted kernels compute what a GPU does, and their mistakes show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cross_compile import cross_compile_generated
from torch._inductor.utils import run_and_get_code

from metis_compile.compat import inductor_config
from metis_compile.numerics import quantize

triton = pytest.importorskip("triton")
tl = triton.language


def special_floats() -> torch.Tensor:
    """Ties, subnormals, what saturates, infinities, NaN and both zeros, as float32."""
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    few = [
        0.0,
        -0.0,
        torch.inf,
        -torch.inf,
        torch.nan,
        448.0,
        464.0,
        480.0,
        57344.0,
        1e9,
        2.0**-9,
        2.0**-10,
        3 * 2.0**-10,
    ]
    ties = 1 + torch.arange(64) / 512
    return torch.cat([bits.view(torch.float32), torch.tensor(few), ties, -ties, ties * 2.0**-9])


@triton.jit
def cast_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    values = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(out + i, values.to(out.dtype.element_ty), mask=i < n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_casts_round_to_nearest_even(triton_on_cpu: Any, dtype: torch.dtype) -> None:
    x = special_floats()
    out = torch.empty(len(x), dtype=dtype)
    cast_kernel[(1,)](x, out, len(x), BLOCK=8192)
    largest = torch.finfo(dtype).max
    expected = (x.clamp(-largest, largest) if dtype.itemsize == 1 else x).to(dtype)  # PTX: cvt.rn.satfinite
    assert torch.equal(out.float().nan_to_num(7, 8, 9), expected.float().nan_to_num(7, 8, 9))
    back = torch.empty(len(x))
    cast_kernel[(1,)](out, back, len(x), BLOCK=8192)
    assert torch.equal(back.nan_to_num(7, 8, 9), expected.float().nan_to_num(7, 8, 9))


@triton.jit
def arithmetic_kernel(x, y, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, a * b - a)
    tl.store(out + N + i, tl.minimum(a, b))
    tl.store(out + 2 * N + i, tl.clamp(a, -1.0, 1.0))
    tl.store(out + 3 * N + i, tl.fma(a, b, a))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_arithmetic(triton_on_cpu: Any, dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 64).to(dtype)
    x[:2] = torch.nan
    out = torch.empty(4, 64, dtype=dtype)
    arithmetic_kernel[(1,)](x, y, out, N=64)
    assert torch.equal(out[0, 2:], (x * y - x)[2:])
    assert torch.equal(out[1], torch.fmin(x, y))
    assert torch.equal(out[2], x.clamp(-1, 1).nan_to_num(-1))
    assert torch.equal(out[3, 2:], (x.double() * y + x).to(dtype)[2:])


@triton.jit
def dot_kernel(x, y, out, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_dot(triton_on_cpu: Any, dtype: torch.dtype) -> None:
    x, y = torch.randint(-8, 9, (2, 16, 16)).to(dtype)
    out = torch.empty(16, 16)
    dot_kernel[(1,)](x, y, out, N=16)
    assert torch.equal(out, x.float() @ y.float())


@triton.jit
def dot_scaled_kernel(
    a,
    a_scale,
    b,
    b_scale,
    out,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    PACK: tl.constexpr,
    FORMAT: tl.constexpr,
):
    n, k, s = tl.arange(0, N), tl.arange(0, K // PACK), tl.arange(0, K // BLOCK)
    left = tl.load(a + n[:, None] * (K // PACK) + k[None, :])
    right = tl.load(b + n[None, :] * (K // PACK) + k[:, None])
    scale_at = n[:, None] * (K // BLOCK) + s[None, :]
    result = tl.dot_scaled(left, tl.load(a_scale + scale_at), FORMAT, right, tl.load(b_scale + scale_at), FORMAT)
    tl.store(out + n[:, None] * N + n[None, :], result)


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4", "mxfp8", "mxfp8_e5m2"])
def test_dot_scaled(triton_on_cpu: Any, format: str) -> None:
    a, b = quantize(torch.randn(16, 64), format), quantize(torch.randn(16, 64), format)
    out = torch.empty(16, 16)
    scales = [
        s if format == "nvfp4" else s.view(torch.uint8) for s in (a.block_scales, b.block_scales) if s is not None
    ]
    block, pack = (16, 2) if format == "nvfp4" else (32, 2) if format == "mxfp4" else (32, 1)
    element = {"mxfp8": "e4m3", "mxfp8_e5m2": "e5m2"}.get(format, "e2m1")
    given = (a.codes, scales[0], b.codes, scales[1], out)
    dot_scaled_kernel[(1,)](*given, N=16, K=64, BLOCK=block, PACK=pack, FORMAT=element)
    dec = 1.0 if a.tensor_scale is None or b.tensor_scale is None else a.tensor_scale * b.tensor_scale
    torch.testing.assert_close(out * dec, a.dequantize() @ b.dequantize().T, rtol=1e-5, atol=1e-5)


@triton.jit
def copy_kernel(x, out, n, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@pytest.mark.parametrize(("given", "room"), [(5, 8), (8, 5)])
def test_what_lies_outside_of_the_tensors_is_an_error(triton_on_cpu: Any, given: int, room: int) -> None:
    x, out = torch.randn(given), torch.empty(room)
    copy_kernel[(1,)](x, out, 5, N=8)
    assert torch.equal(out[:5], x[:5])
    with pytest.raises(Exception, match="loads from 1 addresses" if given < room else "stores to 1 addresses"):
        copy_kernel[(1,)](x, out, 6, N=8)


def test_pointwise_and_reductions(triton_on_cpu: Any) -> None:
    def function(x: torch.Tensor) -> Any:
        erf = torch.nn.functional.gelu(x) * torch.rsqrt(x * x + 1)
        return erf.softmax(-1), torch.expm1(x).bfloat16(), (x * 3).to(torch.float8_e4m3fn), x.abs().amax(0), x.var(1)

    x = torch.randn(37, 21)
    for actual, expected in zip(torch.compile(function)(x), function(x), strict=True):
        torch.testing.assert_close(actual.float(), expected.float(), rtol=1e-5, atol=1e-6)


def test_inductors_template_with_an_epilogue(triton_on_cpu: Any) -> None:
    def function(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w + bias)

    x, w, bias = torch.randn(37, 21), torch.randn(21, 19), torch.randn(19)
    with inductor_config.patch(max_autotune_gemm_backends="TRITON"):
        actual, (code,) = run_and_get_code(torch.compile(function), x, w, bias)
    torch.testing.assert_close(actual, function(x, w, bias), rtol=1e-5, atol=1e-5)
    (built,) = cross_compile_generated(code, 90).items()
    assert built[0].startswith("triton_tem_fused")
    assert "relu" in built[0]
    assert "fma.rn.f32" in built[1].ptx


def test_inductors_buffers_start_as_nan(triton_on_cpu: Any) -> None:
    empty = torch._C._dynamo.guards._empty_strided_cpu
    assert empty((3, 5), (5, 1), torch.bfloat16).isnan().all()
    assert (empty((5,), (1,), torch.uint8) == 255).all()
