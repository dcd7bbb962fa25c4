"""`metis::grouped_mm`: a product for each group of tokens, such as those that a router sends to one expert.

    a [tokens, k] and b [groups, k, n]  ->  [tokens, n]       rows ends[g - 1] to ends[g] of a, times b[g]
    a [m, tokens] and b [tokens, n]     ->  [groups, m, n]    those columns of a, times those rows of b

Group 0 begins at 0. Tokens past the last end belong to no group: nothing of them is read, and their rows are zero.
Otherwise it is `aten::_grouped_mm` in these two forms, for float32 and float16 too. It waits for the ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from metis_compile.compat import OpOverload
from metis_compile.ops.checks import check_device, check_dtype, differ

__all__ = ["GROUPED_MM", "grouped_mm", "grouped_shape", "spans_of"]

NAME = "metis::grouped_mm"

# waits for the device, which no CUDA graph can hold
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)
_library = torch.library.Library("metis", "FRAGMENT")
_library.define("grouped_mm(Tensor a, Tensor b, Tensor offs) -> Tensor", tags=_TAGS)


def grouped_mm(a: Tensor, b: Tensor, offs: Tensor) -> Tensor:
    """[tokens, n] or [groups, m, n], in a's dtype.

    offs: int32 or int64 [groups], ascending from 0 to the number of tokens. Raises TypeError or ValueError that names
    the argument, its value and what is supported.
    """
    out = a.new_empty(grouped_shape(NAME, a, b, offs))
    spans = spans_of(NAME, offs, b.shape[0] if b.dim() == 2 else a.shape[0])
    for group, span in enumerate(spans):
        if b.dim() == 3:
            torch.mm(a[span], b[group], out=out[span])
        else:
            torch.mm(a[:, span], b[span], out=out[group])
    if b.dim() == 3:
        out[spans[-1].stop if spans else 0 :].zero_()
    return out


def spans_of(op: str, offs: Tensor, tokens: int) -> list[slice]:
    """The tokens of each group. Raises ValueError as `op` for ends that no tokens have."""
    stops: list[int] = offs.tolist()
    if any(a > b for a, b in zip([0, *stops], [*stops, tokens], strict=True)):
        raise ValueError(f"{op}: offs must ascend from 0 to the {tokens} tokens, got {stops}")
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def grouped_shape(op: str, a: Tensor, b: Tensor, offs: Tensor) -> list[Any]:
    """The shape of the product. Raises as `op` for arguments that it can't be made of."""
    check_dtype(op, "a", a, torch.float32, torch.bfloat16, torch.float16)
    check_dtype(op, "b", b, a.dtype)
    check_dtype(op, "offs", offs, torch.int32, torch.int64)
    check_device(op, "b", b, a, "a")
    check_device(op, "offs", offs, a, "a")
    if offs.dim() != 1:
        raise ValueError(f"{op}: offs must have one dimension, got shape {list(offs.shape)}")
    if a.dim() != 2 or b.dim() not in (2, 3):
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        raise ValueError(f"{op}: a and b must be a matrix and a matrix or a batch of them, got {shapes}")
    if differ(a.shape[1:], b.shape[-2:-1]):
        raise ValueError(f"{op}: b must have {a.shape[1]} rows, as many as a has columns, got {list(b.shape)}")
    if b.dim() == 2:
        return [offs.shape[0], a.shape[0], b.shape[1]]
    if differ(b.shape[:1], offs.shape):
        raise ValueError(f"{op}: b must hold a matrix for each of {offs.shape[0]} ends, got shape {list(b.shape)}")
    return [a.shape[0], b.shape[2]]


def _fake(a: Tensor, b: Tensor, offs: Tensor) -> Tensor:
    return a.new_empty(grouped_shape(NAME, a, b, offs))


_library.impl("grouped_mm", grouped_mm, "CompositeExplicitAutograd")
torch.library.register_fake(NAME, _fake, lib=_library)
GROUPED_MM: OpOverload = torch.ops.metis.grouped_mm.default


@register_flop_formula(torch.ops.metis.grouped_mm)  # type: ignore[untyped-decorator]
def _flops(a_shape: torch.Size, b_shape: torch.Size, *_: Any, **__: Any) -> int:
    """As if all tokens were in a group."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]
