"""`metis::gemm`, the product of two packed matrices, with thin products added to the same sum. Plain torch here.

    gemm(A, B, tails) = decode(A) @ decode(B) + sum of left @ right over the tails         all in float32

A [m, k] and B [k, n], or batches of them, each lie as they were quantized or transposed: `contract` says which axis
of the tensor at hand is k, `axis` along which its codes are packed (the two differ for square blocks alone, whose
values have no direction). The tails carry what conditioning splits off: A = R + L F gives (L) @ (F B), rank-k thin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.compat import OpOverload
from metis_compile.kernels.gemm.operand import check, parse
from metis_compile.numerics import decode

__all__ = ["GEMM", "gemm", "sizes_of"]

NAME = "metis::gemm"
MAX_TAILS = 2  # that a template has room for
TAIL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_library = torch.library.Library("metis", "FRAGMENT")
_library.define(
    "gemm(Tensor[] a, str a_spec, int a_axis, SymInt a_length, int a_contract, "
    "Tensor[] b, str b_spec, int b_axis, SymInt b_length, int b_contract, Tensor[] tails) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def gemm(
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
    tails: Sequence[Tensor] = (),
) -> Tensor:
    """float32 [m, n], or [batch, m, n].

    a, b: the parts that `metis_compile.numerics.encode` makes. a_axis, a_length: what `decode` takes. a_contract: the
    axis of a that is k, one of the last two. tails: left [m, r] and right [r, n] in turn, float32, bfloat16 or
    float16; of matrices only. Raises ValueError or TypeError that names the argument, its value and what is supported.
    """
    _check(a, a_spec, a_axis, a_length, a_contract, b, b_spec, b_axis, b_length, b_contract, tails)
    left = decode(a, parse(a_spec), a_axis, a_length)
    right = decode(b, parse(b_spec), b_axis, b_length)
    result = (left if a_contract % left.dim() == left.dim() - 1 else left.mT) @ (
        right.mT if b_contract % right.dim() == right.dim() - 1 else right
    )
    for u, s in zip(tails[::2], tails[1::2], strict=True):
        result = result + u.float() @ s.float()
    return result


def sizes_of(codes: Tensor, axis: int, length: Any, contract: int) -> tuple[list[Any], Any, Any]:
    """(batch, rows, k) of an operand."""
    rank = codes.dim()
    sizes = list(codes.shape)
    sizes[axis] = length
    k = contract % rank
    return sizes[: rank - 2], sizes[2 * rank - 3 - k], sizes[k]


def _fake(
    a: Sequence[Tensor], a_spec: str, a_axis: int, a_length: Any, a_contract: int,
    b: Sequence[Tensor], b_spec: str, b_axis: int, b_length: Any, b_contract: int,
    tails: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    batch, m, n = _check(a, a_spec, a_axis, a_length, a_contract, b, b_spec, b_axis, b_length, b_contract, tails)
    return a[0].new_empty((*batch, m, n), dtype=torch.float32)


def _check(
    a: Sequence[Tensor], a_spec: str, a_axis: int, a_length: Any, a_contract: int,
    b: Sequence[Tensor], b_spec: str, b_axis: int, b_length: Any, b_contract: int,
    tails: Sequence[Tensor],
) -> tuple[list[Any], Any, Any]:  # fmt: skip
    """(batch, m, n)."""
    check(NAME, "a", a, a_spec, a_axis, a_length, a_contract)
    check(NAME, "b", b, b_spec, b_axis, b_length, b_contract)
    if a[0].device != b[0].device:
        raise ValueError(f"{NAME}: b must be on {a[0].device} like a, got {b[0].device}")
    a_batch, m, a_k = sizes_of(a[0], a_axis, a_length, a_contract)
    b_batch, n, b_k = sizes_of(b[0], b_axis, b_length, b_contract)
    if len(a_batch) != len(b_batch) or _differ([*a_batch, a_k], [*b_batch, b_k]):
        raise ValueError(f"{NAME}: a and b must have equal batch and k, got {[*a_batch, a_k]} and {[*b_batch, b_k]}")
    _check_tails(tails, a_batch, m, n, a[0].device)
    return a_batch, m, n


def _check_tails(tails: Sequence[Tensor], batch: list[Any], m: Any, n: Any, device: torch.device) -> None:
    if len(tails) % 2:
        raise ValueError(f"{NAME}: tails must be pairs of left and right, got {len(tails)} tensors")
    if tails and batch:
        raise ValueError(f"{NAME}: tails must be empty for batches of matrices, got {len(tails) // 2}")
    for i, (u, s) in enumerate(zip(tails[::2], tails[1::2], strict=True)):
        for side, tail in (("left", u), ("right", s)):
            if tail.dtype not in TAIL_DTYPES:
                raise TypeError(
                    f"{NAME}: the {side} of tail {i} must be float32, bfloat16 or float16, got {tail.dtype}"
                )
            if tail.device != device:
                raise ValueError(f"{NAME}: the {side} of tail {i} must be on {device} like a, got {tail.device}")
        if u.dim() != 2 or s.dim() != 2 or _differ([*u.shape, n], [m, s.shape[0], s.shape[1]]):
            raise ValueError(f"{NAME}: tail {i} must be [{m}, r] and [r, {n}], got {list(u.shape)} and {list(s.shape)}")


def _differ(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return any(statically_known_true(x != y) for x, y in zip(a, b, strict=True))


_library.impl("gemm", gemm, "CompositeExplicitAutograd")
torch.library.register_fake("metis::gemm", _fake, lib=_library)
GEMM: OpOverload = torch.ops.metis.gemm.default
