"""`metis::grouped_gemm`: `metis::grouped_mm` of two packed operands. Plain torch here.

    grouped_gemm(A, B, offs) = grouped_mm(decode(A), decode(B), offs)           in float32

A and B lie as those of `metis::gemm` do, and are given alike: tokens [tokens, k] by a matrix for each group
[groups, k, n], or both [tokens, ...], contracted over tokens. A block of wgrad may hold tokens of two groups: each
product takes its own elements of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metis_compile.compat import OpOverload
from metis_compile.kernels.gemm.op import sizes_of
from metis_compile.kernels.gemm.operand import check, parse
from metis_compile.numerics import decode
from metis_compile.ops.checks import check_device, check_dtype, differ
from metis_compile.ops.grouped import grouped_mm

__all__ = ["GROUPED_GEMM", "grouped_gemm"]

NAME = "metis::grouped_gemm"

_library = torch.library.Library("metis", "FRAGMENT")
_library.define(
    "grouped_gemm(Tensor[] a, str a_spec, int a_axis, SymInt a_length, int a_contract, "
    "Tensor[] b, str b_spec, int b_axis, SymInt b_length, int b_contract, Tensor offs) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def grouped_gemm(
    a: Sequence[Tensor],
    a_spec: str,
    a_axis: int,
    a_length: int,
    a_contract: int,
    b: Sequence[Tensor],
    b_spec: str,
    b_axis: int,
    b_length: int,
    b_contract: int,
    offs: Tensor,
) -> Tensor:
    """float32 [tokens, n], rows of no group zero, or [groups, m, n].

    a, b: the parts that `metis_compile.numerics.encode` makes. a_axis, a_length: what `decode` takes. a_contract: the
    axis of a that is contracted, one of the last two. ends: int32 or int64 [groups]. Raises ValueError or TypeError
    that names the argument, its value and what is supported.
    """
    _check(a, a_spec, a_axis, a_length, a_contract, b, b_spec, b_axis, b_length, b_contract, offs)
    left = decode(a, parse(a_spec), a_axis, a_length)
    right = decode(b, parse(b_spec), b_axis, b_length)
    left = left if a_contract % left.dim() == left.dim() - 1 else left.mT
    right = right.mT if b_contract % right.dim() == right.dim() - 1 else right
    return grouped_mm(left, right, offs)


def _fake(
    a: Sequence[Tensor], a_spec: str, a_axis: int, a_length: Any, a_contract: int,
    b: Sequence[Tensor], b_spec: str, b_axis: int, b_length: Any, b_contract: int,
    offs: Tensor,
) -> Tensor:  # fmt: skip
    shape = _check(a, a_spec, a_axis, a_length, a_contract, b, b_spec, b_axis, b_length, b_contract, offs)
    return a[0].new_empty(shape, dtype=torch.float32)


def _check(
    a: Sequence[Tensor], a_spec: str, a_axis: int, a_length: Any, a_contract: int,
    b: Sequence[Tensor], b_spec: str, b_axis: int, b_length: Any, b_contract: int,
    offs: Tensor,
) -> list[Any]:  # fmt: skip
    """The result's shape."""
    check(NAME, "a", a, a_spec, a_axis, a_length, a_contract)
    check(NAME, "b", b, b_spec, b_axis, b_length, b_contract)
    check_device(NAME, "b", b[0], a[0], "a")
    check_dtype(NAME, "offs", offs, torch.int32, torch.int64)
    check_device(NAME, "offs", offs, a[0], "a")
    if offs.dim() != 1:
        raise ValueError(f"{NAME}: offs must have one dimension, got shape {list(offs.shape)}")
    if a[0].dim() != 2:
        raise ValueError(f"{NAME}: a must be a quantized matrix, got {a[0].dim()} dimensions")
    _, m, k = sizes_of(a[0], a_axis, a_length, a_contract)
    batch, n, b_k = sizes_of(b[0], b_axis, b_length, b_contract)
    if differ([k], [b_k]):
        raise ValueError(f"{NAME}: a and b must have equal k, got {k} and {b_k}")
    if batch and differ(batch, offs.shape):
        raise ValueError(f"{NAME}: b must hold a matrix for each of {offs.shape[0]} ends, got {batch[0]}")
    return [m, n] if batch else [offs.shape[0], m, n]


_library.impl("grouped_gemm", grouped_gemm, "CompositeExplicitAutograd")
torch.library.register_fake(NAME, _fake, lib=_library)
GROUPED_GEMM: OpOverload = torch.ops.metis.grouped_gemm.default
