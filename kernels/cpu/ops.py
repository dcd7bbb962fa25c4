"""Quantization and products on the CPU as operators, over the C++ kernels that `calls` runs.

    cpu_tensor_scale(x, target) -> (enc, dec)                   the scale of a whole tensor, shared by what reads x
    cpu_values(x, given, spec, axis, stream, exact) -> values   float32, or exact: bfloat16 without the tensor scale
    cpu_parts(x, given, spec, axis, stream) -> [codes, block_scales?]
    cpu_decode(parts, spec, axis, length, exact) -> values
    cpu_thin_sum(x, left, right, scale) -> x + scale left right   float32, few columns in left
    cpu_product(a, b, decs, tails, bias, added, scale) -> float32    of exact values
    cpu_grouped(a, b, offs, decs) -> float32                    `metis::grouped_mm` of exact values
    cpu_cast(x, dtype) -> x in that dtype                       of factors: too small for a kernel of their own,
    cpu_cat(parts, dim) -> parts side by side                   as these

tails: factors u, s of thin products u @ s that are added, one pair after the other; float32 or bfloat16, as those of
cpu_thin_sum. bias: float32 [columns], only where there are tails, whose sum takes it along. added: float32, of the
result's shape. scale: of the product of a and b.
given: [enc, dec] where the format has a tensor scale, then the seed where anything is rounded at random. Outputs are
contiguous and alias nothing. Byte for byte what `metis_compile.numerics` defines; a product, to summation order. What
is refused: see `checks`. The functions named _... are the fakes, which check and lay out.
Defined on `torch.library.Library`, whose calls cost less than custom_op's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metis_compile.compat import OpOverload
from metis_compile.kernels.cpu import launch
from metis_compile.kernels.cpu.checks import (
    check_cast,
    check_cat,
    check_decode,
    check_exact,
    check_grouped,
    check_product,
    check_quantized,
    check_tensor_scale,
    check_thin_sum,
)
from metis_compile.numerics.blocks import normalize_axis
from metis_compile.numerics.quantize import part_shapes

__all__ = [
    "CPU_CAST",
    "CPU_CAT",
    "CPU_DECODE",
    "CPU_GROUPED",
    "CPU_PARTS",
    "CPU_PRODUCT",
    "CPU_TENSOR_SCALE",
    "CPU_THIN_SUM",
    "CPU_VALUES",
]

_library = torch.library.Library("metis", "FRAGMENT")


def _define(schema: str, *tags: torch.Tag) -> None:
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))


_CONTIGUOUS = torch.Tag.needs_contiguous_strides
_define("cpu_tensor_scale(Tensor x, float target) -> (Tensor, Tensor)", _CONTIGUOUS)
_define("cpu_values(Tensor x, Tensor[] given, str spec, int axis, int stream, bool exact) -> Tensor", _CONTIGUOUS)
_define("cpu_parts(Tensor x, Tensor[] given, str spec, int axis, int stream) -> Tensor[]", _CONTIGUOUS)
_define("cpu_decode(Tensor[] parts, str spec, int axis, SymInt length, bool exact) -> Tensor", _CONTIGUOUS)
_define("cpu_thin_sum(Tensor x, Tensor left, Tensor right, float scale) -> Tensor", torch.Tag.needs_fixed_stride_order)
_define(
    "cpu_product(Tensor a, Tensor b, Tensor[] decs, Tensor[] tails, Tensor? bias=None, Tensor? added=None, "
    "float scale=1.0) -> Tensor",
    torch.Tag.needs_fixed_stride_order,
)
_define("cpu_grouped(Tensor a, Tensor b, Tensor offs, Tensor[] decs) -> Tensor", torch.Tag.needs_fixed_stride_order)
_define("cpu_cast(Tensor x, ScalarType dtype) -> Tensor", _CONTIGUOUS)
_define("cpu_cat(Tensor[] parts, int dim) -> Tensor", _CONTIGUOUS)


def _scalars(x: Tensor, target: float) -> tuple[Tensor, Tensor]:
    check_tensor_scale(x, target)
    return x.new_empty((), dtype=torch.float32), x.new_empty((), dtype=torch.float32)


def _values(x: Tensor, given: list[Tensor], spec: str, axis: int, stream: int, exact: bool) -> Tensor:
    check_exact("metis::cpu_values", check_quantized("metis::cpu_values", x, given, spec, axis, stream), exact)
    return x.new_empty(x.shape, dtype=torch.bfloat16 if exact else torch.float32)


def _parts(x: Tensor, given: list[Tensor], spec: str, axis: int, stream: int) -> list[Tensor]:
    parsed = check_quantized("metis::cpu_parts", x, given, spec, axis, stream)
    codes, scales = part_shapes(parsed, x.shape, axis)
    results = [x.new_empty(codes, dtype=torch.uint8)]
    return results if scales is None else [*results, x.new_empty(scales, dtype=parsed.fmt.scale_dtype)]


def _decoded(parts: list[Tensor], spec: str, axis: int, length: int, exact: bool) -> Tensor:
    check_decode(parts, spec, axis, length, exact)
    shape = list(parts[0].shape)
    shape[normalize_axis(axis, len(shape))] = length
    return parts[0].new_empty(shape, dtype=torch.bfloat16 if exact else torch.float32)


def _product(
    a: Tensor,
    b: Tensor,
    decs: list[Tensor],
    tails: list[Tensor],
    bias: Tensor | None = None,
    added: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    check_product(a, b, decs, tails, bias, added)
    return a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=torch.float32)


def _grouped(a: Tensor, b: Tensor, offs: Tensor, decs: list[Tensor]) -> Tensor:
    return a.new_empty(check_grouped(a, b, offs, decs), dtype=torch.float32)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    check_cast(x, dtype)
    return x.new_empty(x.shape, dtype=dtype)


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    axis = check_cat(parts, dim)
    size = list(parts[0].shape)
    size[axis] = sum(part.shape[axis] for part in parts)
    return parts[0].new_empty(size)


def _summed(x: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    check_thin_sum(x, left, right)
    return x.new_empty(x.shape)


def cpu_tensor_scale(x: Tensor, target: float) -> tuple[Tensor, Tensor]:
    enc, dec = _scalars(x, target)
    if x.numel() == 0:
        return enc.fill_(1), dec.fill_(1)
    launch.tensor_scale(x, target, enc, dec)
    return enc, dec


def cpu_values(x: Tensor, given: list[Tensor], spec: str, axis: int, stream: int, exact: bool) -> Tensor:
    out = _values(x, given, spec, axis, stream, exact)
    return launch.values(x, *given, spec=spec, axis=axis, stream=stream, out=out)


def cpu_parts(x: Tensor, given: list[Tensor], spec: str, axis: int, stream: int) -> list[Tensor]:
    codes, *scales = _parts(x, given, spec, axis, stream)
    block_scales = scales[0] if scales else None
    launch.parts(x, *given, spec=spec, axis=axis, stream=stream, codes=codes, block_scales=block_scales)
    return [codes, *scales]


def cpu_decode(parts: list[Tensor], spec: str, axis: int, length: int, exact: bool) -> Tensor:
    return launch.decode(*parts, spec=spec, axis=axis, out=_decoded(parts, spec, axis, length, exact))


def cpu_product(
    a: Tensor,
    b: Tensor,
    decs: list[Tensor],
    tails: list[Tensor],
    bias: Tensor | None = None,
    added: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    out = _product(a, b, decs, tails, bias, added)
    given = [*decs, *tails, *(t for t in (bias, added) if t is not None)]
    count, kinds = len(tails) // 2, {"biased": bias is not None, "accumulates": added is not None}
    return launch.product(a, b, *given, tails=count, **kinds, scale=scale, out=out)


def cpu_grouped(a: Tensor, b: Tensor, offs: Tensor, decs: list[Tensor]) -> Tensor:
    return launch.grouped(a, b, offs, *decs, out=_grouped(a, b, offs, decs))


def cpu_thin_sum(x: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    return launch.thin_sum(x, left, right, scale=scale, out=_summed(x, left, right, scale))


def cpu_cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return launch.cast(x, out=_cast(x, dtype))


def cpu_cat(parts: list[Tensor], dim: int) -> Tensor:
    return launch.cat(*parts, dim=dim, out=_cat(parts, dim))


def _register(name: str, run: Any, fake: Any) -> OpOverload:
    _library.impl(name, run, "CompositeExplicitAutograd")  # for no tensors and for other devices too
    torch.library.register_fake(f"metis::{name}", fake, lib=_library)
    return getattr(torch.ops.metis, name).default


CPU_TENSOR_SCALE = _register("cpu_tensor_scale", cpu_tensor_scale, _scalars)
CPU_THIN_SUM = _register("cpu_thin_sum", cpu_thin_sum, _summed)
CPU_VALUES = _register("cpu_values", cpu_values, _values)
CPU_PARTS = _register("cpu_parts", cpu_parts, _parts)
CPU_DECODE = _register("cpu_decode", cpu_decode, _decoded)
CPU_PRODUCT = _register("cpu_product", cpu_product, _product)
CPU_GROUPED = _register("cpu_grouped", cpu_grouped, _grouped)
CPU_CAST = _register("cpu_cast", cpu_cast, _cast)
CPU_CAT = _register("cpu_cat", cpu_cat, _cat)
