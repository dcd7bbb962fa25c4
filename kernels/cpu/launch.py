"""What compiled graphs call on the CPU: C++ kernels on contiguous tensors, each into an output that is given.

Byte for byte what `metis_compile.numerics` defines. Two kinds of values: "full", float32; and "exact", bfloat16
without the tensor scale, where bfloat16 holds element times block scale (`is_exact`), which `product` takes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from metis_compile.compat import bf16_gemm
from metis_compile.kernels.cpu.compile import INPUTS, load
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.blocks import BlockLayout
from metis_compile.ops.grouped import spans_of

__all__ = ["cast", "cat", "decode", "grouped", "is_exact", "parts", "product", "tensor_scale", "thin_sum", "values"]

_NONE, _FULL, _EXACT = 0, 1, 2
_FLOAT32_SMALLEST, _FLOAT32_LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
_ROW_MAJOR, _AS_IS, _TRANSPOSED = 101, 111, 112  # of CBLAS
parse = cache(QuantSpec.parse)


def is_exact(spec: QuantSpec) -> bool:
    """Whether bfloat16 holds element times block scale; with E8M0 scales, up to its subnormal numbers."""
    return spec.is_exact or spec.block == "tensor"


def tensor_scale(x: Tensor, target: float, enc: Tensor, dec: Tensor) -> None:
    """enc = target / amax(x) and dec = 1 / enc into 0-dim float32 tensors; x is not empty."""
    x = x.contiguous()
    load("tensor_scale", None, x.dtype)(
        x.data_ptr(), x.numel(), target, enc.data_ptr(), dec.data_ptr(), torch.get_num_threads()
    )


def values(x: Tensor, *given: Tensor, spec: str, axis: int, stream: int = 0, out: Tensor) -> Tensor:
    """The values of quantized `x`: full or exact, as `out` is float32 or bfloat16.

    given: (enc, dec) where the format has a tensor scale, then the seed where anything is rounded at random.
    """
    kernel, outer, n, inner, pack_rows, enc, dec, seed = _prepare(x, given, spec, axis)
    x = x.contiguous()
    kind = _FULL if out.dtype == torch.float32 else _EXACT
    kernel(
        x.data_ptr(), outer, n, inner, pack_rows, kind, out.data_ptr(), None, None, enc, dec, seed, stream,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def parts(
    x: Tensor, *given: Tensor, spec: str, axis: int, stream: int, codes: Tensor, block_scales: Tensor | None
) -> None:
    """The codes and the block scales, if the format has them, of quantized `x`. given: as for `values`."""
    kernel, outer, n, inner, pack_rows, enc, dec, seed = _prepare(x, given, spec, axis)
    if x.numel() == 0:  # a row of nothing has a scale
        if block_scales is not None:
            block_scales.fill_(1)
        return
    x = x.contiguous()
    scales = None if block_scales is None else block_scales.data_ptr()
    kernel(
        x.data_ptr(), outer, n, inner, pack_rows, _NONE, None, codes.data_ptr(), scales, enc, dec, seed,
        stream, torch.get_num_threads(),
    )  # fmt: skip


def decode(*stored: Tensor, spec: str, axis: int, out: Tensor) -> Tensor:
    """The values of stored parts: full or exact, as `out` is float32 or bfloat16."""
    stored = tuple(part.contiguous() for part in stored)
    kernel, *dimensions = _plan("decode", spec, axis, torch.float32, out.shape)
    kind = _FULL if out.dtype == torch.float32 else _EXACT
    last = stored[2].data_ptr() if len(stored) > 2 else None
    kernel(stored[0].data_ptr(), stored[1].data_ptr(), last, *dimensions, kind, out.data_ptr(), torch.get_num_threads())
    return out


def product(
    a: Tensor,
    b: Tensor,
    *given: Tensor,
    tails: int = 0,
    biased: bool = False,
    accumulates: bool = False,
    scale: float = 1.0,
    out: Tensor,
) -> Tensor:
    """scale a [..., m, k] @ b [..., k, n] of exact values, times tensor scales, plus what is added: float32 sums.

    given: the tensor scales, then for each of `tails` thin products its factors, float32 or bfloat16 [m, r] and
    [r, n], then, if `biased`, which needs a tail, the bias, float32 [n], then, if it `accumulates`, what the result is
    added to, float32 of its shape.
    """
    given, added = (given[:-1], given[-1]) if accumulates else (given, None)
    given, bias = (given[:-1], given[-1]) if biased else (given, None)
    decs, factors = given[: len(given) - 2 * tails], given[len(given) - 2 * tails :]
    scales = [scale, *(ctypes.c_float.from_address(dec.data_ptr()).value for dec in decs)]
    alpha = prod(scales)
    apart = len(decs) == 2 and not _FLOAT32_SMALLEST <= abs(alpha) <= _FLOAT32_LARGEST  # of NaN, too
    first, last = (prod(scales[:2]), scales[2]) if apart else (alpha, None)
    rest = _Rest(factors, bias, added)
    beta = 0.0 if last is not None else rest.start(out)
    if out.dim() == 2:
        _gemm(a, b, first, beta, out)
    else:
        m, n, k = out.shape[-2], out.shape[-1], a.shape[-1]
        matrices = zip(a.reshape(-1, m, k), b.reshape(-1, k, n), out.view(-1, m, n), strict=True)
        for left, right, result in matrices:
            _gemm(left, right, first, beta, result)
    if last is not None:
        out.mul_(last)
        rest.add_to(out)
    return out


def grouped(a: Tensor, b: Tensor, offs: Tensor, *decs: Tensor, out: Tensor) -> Tensor:
    """`metis::grouped_mm` of exact values, times tensor scales: float32 sums."""
    scales = [ctypes.c_float.from_address(dec.data_ptr()).value for dec in decs]
    apart = len(scales) == 2 and not _FLOAT32_SMALLEST <= abs(prod(scales)) <= _FLOAT32_LARGEST
    first = scales[0] if apart else prod(scales)
    spans = spans_of("metis::cpu_grouped", offs, b.shape[0] if b.dim() == 2 else a.shape[0])
    for group, span in enumerate(spans):
        if b.dim() == 3 and span.stop > span.start:
            _gemm(a[span], b[group], first, 0.0, out[span])
        elif b.dim() == 2 and span.stop > span.start:
            _gemm(a[:, span], b[span], first, 0.0, out[group])
        elif b.dim() == 2:
            out[group].zero_()
    if apart:
        out.mul_(scales[1])
    if b.dim() == 3:
        out[spans[-1].stop if spans else 0 :].zero_()
    return out


class _Rest:
    """What a product is added to: before it where it can be, so that nothing of the product's size is read again."""

    def __init__(self, factors: Sequence[Tensor], bias: Tensor | None, added: Tensor | None) -> None:
        lefts, rights = list(factors[::2]), list(factors[1::2])  # all thin products are one
        self.left = torch.cat(lefts, 1) if len(lefts) > 1 else next(iter(lefts), None)
        self.right = torch.cat(rights, 0) if len(rights) > 1 else next(iter(rights), None)
        self.bias, self.added = bias, added

    def start(self, out: Tensor) -> float:
        """Writes it to `out`; returns what the product multiplies `out` by as it adds to it."""
        if self.left is not None and self.right is not None:
            thin_sum(self.added, self.left, self.right, scale=1.0, bias=self.bias, out=out)
        elif self.added is not None:
            out.copy_(self.added)
        else:
            return 0.0
        return 1.0

    def add_to(self, out: Tensor) -> None:
        if self.left is not None and self.right is not None:
            thin_sum(out, self.left, self.right, scale=1.0, bias=self.bias, out=out)
        if self.added is not None:
            out.add_(self.added)


def thin_sum(
    x: Tensor | None, left: Tensor, right: Tensor, *, scale: float, bias: Tensor | None = None, out: Tensor
) -> Tensor:
    """x + scale left right + bias: [m, n], [m, k], [k, n] and [n], for small k. `out` is contiguous, and may be x.

    x: None for zeros. All float32; left and right may be bfloat16 each.
    """
    x = x if x is None else x.contiguous()
    if right.stride(1) != 1 and right.shape[1] > 1:
        right = right.contiguous()
    bias = bias if bias is None else bias.contiguous()
    narrow = (left.dtype == torch.bfloat16) + 2 * (right.dtype == torch.bfloat16)
    load("thin_sum", None, torch.float32)(
        None if x is None else x.data_ptr(), out.data_ptr(), *out.shape, left.data_ptr(), right.data_ptr(),
        None if bias is None else bias.data_ptr(), right.shape[0], *left.stride(), right.stride(0), scale,
        narrow, torch.get_num_threads(),
    )  # fmt: skip
    return out


def cast(x: Tensor, *, out: Tensor) -> Tensor:
    """x in the dtype of `out`, to the nearest, ties to even."""
    return out.copy_(x)


def cat(*parts: Tensor, dim: int, out: Tensor) -> Tensor:
    """The parts side by side, in the dtype of `out`, which is theirs."""
    return torch.cat(parts, dim, out=out)


def _gemm(a: Tensor, b: Tensor, alpha: float, beta: float, out: Tensor) -> None:
    """out = alpha a b + beta out. In float32 where there is no bfloat16 GEMM: the lowering makes no such calls there,
    but a graph that was compiled on another CPU may."""
    gemm = bf16_gemm()
    if gemm is None:
        torch.addmm(out, a.to(torch.float32), b.to(torch.float32), beta=beta, alpha=alpha, out=out)
        return
    (m, n), k = out.shape, a.shape[1]
    a, transpose_a, lda = _operand(a)
    b, transpose_b, ldb = _operand(b)
    gemm(
        _ROW_MAJOR, transpose_a, transpose_b, m, n, k, alpha, a.data_ptr(), lda, b.data_ptr(), ldb,
        beta, out.data_ptr(), n,
    )  # fmt: skip


def _operand(matrix: Tensor) -> tuple[Tensor, int, int]:
    """The matrix, its CBLAS orientation and its leading dimension."""
    rows, columns = matrix.stride()
    height, width = matrix.shape
    if columns == 1 and rows >= width:
        return matrix, _AS_IS, rows
    if rows == 1 and columns >= height:
        return matrix, _TRANSPOSED, columns
    return matrix.contiguous(), _AS_IS, width


def _prepare(x: Tensor, given: Sequence[Tensor], spec: str, axis: int) -> tuple[Any, ...]:
    kernel, outer, n, inner, pack_rows = _plan("quantize", spec, axis, x.dtype, x.shape)
    pointers = [t.data_ptr() for t in given]
    enc, dec = pointers[:2] if len(pointers) > 1 else (None, None)
    return kernel, outer, n, inner, pack_rows, enc, dec, pointers[-1] if len(pointers) % 2 else None


@lru_cache(maxsize=4096)
def _plan(
    name: str, text: str, axis: int, dtype: torch.dtype, shape: Sequence[int]
) -> tuple[Callable[..., None], int, int, int, bool]:
    """The C function, then [outer, n, inner] and whether codes are packed along n where blocks are square."""
    if dtype not in INPUTS:
        raise TypeError(f"x must be float32, bfloat16 or float16, got {dtype}")
    spec = parse(text)
    kernel = load(name, spec, dtype)
    layout = BlockLayout.of(spec, len(shape), axis)
    if len(layout.tiles) == 2:
        return kernel, prod(shape[:-2]), shape[-2], shape[-1], layout.axis == len(shape) - 2
    return kernel, prod(shape[: layout.axis]), shape[layout.axis], prod(shape[layout.axis + 1 :]), False
