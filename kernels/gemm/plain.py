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
from torch import Tensor

from metis_compile.kernels.gemm.operand import Operand, operand_of
from metis_compile.numerics import decode

__all__ = ["product"]

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
    for parts, operand, contracted in ((a_parts, left, -1), (b_parts, right, -2)):
        if operand.spec.block == "row":
            out *= _as_read(parts[1], operand, contracted)
        if operand.dec and not _in_float32(operand):
            out *= parts[-1]
    for u, s in zip(tails[::2], tails[1::2], strict=True):
        out += u.float() @ s.float()
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
        assert spec.element.dtype is not None
        return codes.view(spec.element.dtype).to(torch.bfloat16)
    if codes.device.type == "cuda":
        from metis_compile.kernels.gemm.decode import decode_to_bfloat16  # imports Triton, which not every machine has

        return decode_to_bfloat16(parts, operand, length)
    ones = [torch.ones((), device=codes.device)] if operand.dec else []
    return decode([codes, parts[1].view(spec.fmt.scale_dtype), *ones], spec, operand.axis, length, torch.bfloat16)


def _as_read(x: Tensor, operand: Operand, contracted: int) -> Tensor:
    """[m, k] or [k, n] of the operand as it lies."""
    return x if operand.contracted == contracted else x.mT


def _multiply(x: Tensor, y: Tensor, out: Tensor) -> None:
    if x.dtype == y.dtype == torch.bfloat16 and out.device.type == "cuda":
        multiply: Any = aten.mm.dtype_out if out.dim() == 2 else aten.bmm.dtype_out
        multiply(x, y, torch.float32, out=out)
    else:  # nothing else has a product of bfloat16 into float32
        torch.matmul(x.float(), y.float(), out=out)
