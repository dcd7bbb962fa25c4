"""The product without a template: operands decoded to bfloat16, multiplied by torch, which on a GPU means cuBLAS.

    acc = decoded A @ decoded B                      in bfloat16, summed in float32
    acc *= scales of rows and of tensors             acc += left @ right, over the tails

Exact to summation order, like the templates: bfloat16 holds an element times its E4M3 or E8M0 block scale, and what
float32 scales multiply comes after the sum. Where these change along k, the operands are decoded to float32.

Inductor's autotuner times it beside the templates, and it runs where none of them works. It costs two passes over the
operands and room for them in bfloat16, and its product is the fastest there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metis_compile.kernels.gemm.operand import Operand, operand_of
from metis_compile.numerics import decode
from metis_compile.ops.grouped import grouped_mm

__all__ = ["grouped_product", "product"]

aten = torch.ops.aten


def product(*tensors: Tensor, a: tuple[str, int, int], b: tuple[str, int, int], out: Tensor) -> Tensor:
    """The product into `out`, float32, as Inductor calls it.

    tensors: the parts of a, of b, and the tails; scales may be given as their bytes. a, b: spec, axis and contract.
    A byte behind an odd end of k holds the code 0 twice over: no length along k is needed.
    """
    counts = [operand_of([out], *side).part_count for side in (a, b)]
    a_parts, b_parts, tails = tensors[: counts[0]], tensors[counts[0] : sum(counts)], tensors[sum(counts) :]
    left, right = operand_of(a_parts, *a), operand_of(b_parts, *b)
    x = _as_read(_unscaled(a_parts, left, _length(a_parts[0], left, out.shape[-2])), left, -1)
    y = _as_read(_unscaled(b_parts, right, _length(b_parts[0], right, out.shape[-1])), right, -2)
    k = min(x.shape[-1], y.shape[-2])
    _multiply(x[..., :k], y[..., :k, :], out)
    _scale(out, a_parts, left, -1)
    _scale(out, b_parts, right, -2)
    for u, s in zip(tails[::2], tails[1::2], strict=True):
        out += u.float() @ s.float()
    return out


def grouped_product(*tensors: Tensor, a: tuple[str, int, int], b: tuple[str, int, int], out: Tensor) -> Tensor:
    """The grouped product into `out`, float32, as Inductor calls it.

    tensors: the parts of a, of b, and the ends of the groups. torch's own product rounds its sum to
    bfloat16 before the scales of rows and tensors come; sizes that it does not take are multiplied group by group,
    which waits for the ends.
    """
    *tensors_of_both, offs = tensors
    left = operand_of(tensors_of_both[:1], *a)
    a_parts, b_parts = tensors_of_both[: left.part_count], tensors_of_both[left.part_count :]
    right = operand_of(b_parts[:1], *b)
    x = _as_read(_unscaled(a_parts, left, _length(a_parts[0], left, out.shape[-2])), left, -1)
    y = _as_read(_unscaled(b_parts, right, _length(b_parts[0], right, out.shape[-1])), right, -2)
    k = min(x.shape[-1], y.shape[-2])
    _multiply_groups(x[..., :k], y[..., :k, :], offs, out)
    _scale(out, a_parts, left, -1)
    _scale(out, b_parts, right, -2, offs if out.dim() == 2 else None)
    return out


def _length(codes: Tensor, operand: Operand, rows: int) -> int:
    """How many elements lie along the operand's axis, k filled up to whole bytes."""
    if operand.packed == "rows":
        return rows
    return codes.shape[operand.axis] * (2 if operand.packed == "k" else 1)


def _in_float32(operand: Operand) -> bool:
    """Whether bfloat16 does not hold what the sum is of."""
    return operand.per_step


def _unscaled(parts: Sequence[Tensor], operand: Operand, length: int) -> Tensor:
    """The operand as it lies, without scales of rows and of the tensor; whole in float32 where it has to be."""
    codes, spec = parts[0], operand.spec
    if _in_float32(operand):
        return decode(parts, spec, operand.axis, length)
    if spec.block in ("row", "tensor"):
        ones = [torch.ones_like(part) for part in parts[1:]]
        return decode([codes, *ones], spec, operand.axis, length, torch.bfloat16)
    if codes.device.type == "cuda":
        from metis_compile.kernels.gemm.decode import decode_to_bfloat16  # imports Triton, which not every machine has

        return decode_to_bfloat16(parts, operand, length)
    ones = [torch.ones((), device=codes.device)] if operand.dec else []
    return decode([codes, parts[1].view(spec.fmt.scale_dtype), *ones], spec, operand.axis, length, torch.bfloat16)


def _scale(out: Tensor, parts: Sequence[Tensor], operand: Operand, contracted: int, offs: Tensor | None = None) -> None:
    """Multiplies by the scales of rows and of the tensor. ends: of the rows of `out` that have a matrix each."""
    if operand.spec.block == "row":
        scales = _as_read(parts[1], operand, contracted)
        if offs is not None:
            group = torch.bucketize(torch.arange(len(out), device=out.device), offs, right=True)
            scales = scales[group.clamp(max=len(offs) - 1), 0]
        out *= scales
    if operand.dec and not _in_float32(operand):
        out *= parts[-1]


def _as_read(x: Tensor, operand: Operand, contracted: int) -> Tensor:
    """[m, k] or [k, n] of the operand as it lies."""
    return x if operand.contracted == contracted else x.mT


def _multiply(x: Tensor, y: Tensor, out: Tensor) -> None:
    if x.dtype == y.dtype == torch.bfloat16 and out.device.type == "cuda":
        multiply: Any = aten.mm.dtype_out if out.dim() == 2 else aten.bmm.dtype_out
        multiply(x, y, torch.float32, out=out)
    else:  # nothing else has a product of bfloat16 into float32
        torch.matmul(x.float(), y.float(), out=out)


def _multiply_groups(x: Tensor, y: Tensor, offs: Tensor, out: Tensor) -> None:
    if x.dtype == y.dtype == torch.bfloat16 and out.device.type == "cuda" and _is_aligned(x, y):
        out.copy_(F.grouped_mm(x, y, offs=offs.to(torch.int32)))
        if out.dim() == 2:
            past_last_group = torch.arange(len(out), device=out.device) >= offs[-1]
            out.masked_fill_(past_last_group[:, None], 0)
    else:
        out.copy_(grouped_mm(x.float(), y.float(), offs))


def _is_aligned(x: Tensor, y: Tensor) -> bool:
    """Whether rows begin at 16 bytes in both, and so do groups, which begin at any token."""
    groups = x.stride(1) == 1 if y.dim() == 3 else x.stride(0) == y.stride(1) == 1
    strides = [sorted(t.stride()) for t in (x, y)]
    return groups and all(first == 1 and not any(n % 8 for n in others) for first, *others in strides)
