"""What the CPU operators refuse: see `metis_compile.ops.checks`. Each is asked while tracing and where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metis_compile.kernels.cpu.compile import INPUTS
from metis_compile.kernels.cpu.launch import is_exact
from metis_compile.kernels.parts import tensor_target
from metis_compile.numerics import QuantSpec
from metis_compile.ops.checks import (
    axis_of,
    check_axis,
    check_device,
    check_dtype,
    check_parts,
    check_seed,
    check_shape,
    check_stream,
    differ,
    spec_of,
)
from metis_compile.ops.grouped import grouped_shape

FACTORS = (torch.float32, torch.bfloat16)
MOST_DECS = 2  # one for each operand of a product


def check_tensor_scale(x: Tensor, target: float) -> None:
    op = "metis::cpu_tensor_scale"
    _on_cpu(op, "x", x)
    check_dtype(op, "x", x, *INPUTS)
    if not target > 0:
        raise ValueError(f"{op}: target must be above 0, got {target}")


def check_quantized(op: str, x: Tensor, given: Sequence[Tensor], text: str, axis: int, stream: int) -> QuantSpec:
    """For cpu_values and cpu_parts. Returns the spec."""
    spec = spec_of(op, "spec", text)
    _on_cpu(op, "x", x)
    check_dtype(op, "x", x, *INPUTS)
    check_axis(op, spec, axis, x.dim())
    names = [*(["enc", "dec"] if tensor_target(spec) is not None else []), *(["seed"] if spec.needs_noise else [])]
    if len(given) != len(names):
        raise ValueError(f"{op}: given must be [{', '.join(names)}] for {text!r}, got {len(given)} tensors")
    for name, tensor in zip(names, given, strict=True):
        if name == "seed":
            check_seed(op, tensor, spec, x)
        else:
            _check_scalar(op, f"{name} of given", tensor, x, "x")
    check_stream(op, "stream", stream)
    return spec


def check_exact(op: str, spec: QuantSpec, exact: bool) -> None:
    if exact and not is_exact(spec):
        raise ValueError(f"{op}: exact must be False for {str(spec)!r}, whose values bfloat16 can't hold, got True")


def check_decode(parts: Sequence[Tensor], text: str, axis: int, length: int, exact: bool) -> QuantSpec:
    """Returns the spec."""
    op = "metis::cpu_decode"
    spec = spec_of(op, "spec", text)
    check_parts(op, parts, spec, axis, length)
    _on_cpu(op, "parts", parts[0])
    check_exact(op, spec, exact)
    return spec


def check_thin_sum(x: Tensor, left: Tensor, right: Tensor) -> None:
    op = "metis::cpu_thin_sum"
    _on_cpu(op, "x", x)
    check_dtype(op, "x", x, torch.float32)
    if x.dim() != 2:
        raise ValueError(f"{op}: x must be a matrix, got shape {list(x.shape)}")
    _check_thin(op, "left and right", left, right, list(x.shape), x, "x")


def check_product(
    a: Tensor,
    b: Tensor,
    decs: Sequence[Tensor],
    tails: Sequence[Tensor],
    bias: Tensor | None,
    added: Tensor | None,
) -> None:
    op = "metis::cpu_product"
    _on_cpu(op, "a", a)
    check_device(op, "b", b, a, "a")
    for name, operand in (("a", a), ("b", b)):
        check_dtype(op, name, operand, torch.bfloat16)
    if a.dim() < 2 or a.dim() != b.dim() or differ([*a.shape[:-2], a.shape[-1]], [*b.shape[:-2], b.shape[-2]]):
        raise ValueError(f"{op}: a and b must be [..., m, k] and [..., k, n], got {list(a.shape)} and {list(b.shape)}")
    size = [*a.shape[:-1], b.shape[-1]]
    _check_decs(op, decs, a)
    if len(tails) % 2:
        raise ValueError(f"{op}: tails must be pairs of left and right, got {len(tails)} tensors")
    if tails and len(size) > 2:
        raise ValueError(f"{op}: tails must be empty for batches of matrices, got {len(tails) // 2}")
    for i, (left, right) in enumerate(zip(tails[::2], tails[1::2], strict=True)):
        _check_thin(op, f"tail {i}", left, right, size, a, "a")
    for name, tensor, shape in (("bias", bias, size[-1:]), ("added", added, size)):
        if tensor is not None:
            check_dtype(op, name, tensor, torch.float32)
            check_shape(op, name, tensor, shape)
            check_device(op, name, tensor, a, "a")
    if bias is not None and not tails:
        raise ValueError(f"{op}: bias must be None without tails, whose sum takes it along, got {list(bias.shape)}")


def check_grouped(a: Tensor, b: Tensor, offs: Tensor, decs: Sequence[Tensor]) -> list[Any]:
    """Returns the product's shape."""
    op = "metis::cpu_grouped"
    _on_cpu(op, "a", a)
    check_dtype(op, "a", a, torch.bfloat16)
    size = grouped_shape(op, a, b, offs)
    _check_decs(op, decs, a)
    return size


def check_cast(x: Tensor, dtype: torch.dtype) -> None:
    op = "metis::cpu_cast"
    _on_cpu(op, "x", x)
    check_dtype(op, "x", x, *INPUTS)
    if dtype not in INPUTS:
        raise TypeError(f"{op}: dtype must be float32, bfloat16 or float16, got {dtype}")


def check_cat(parts: Sequence[Tensor], dim: int) -> int:
    """Returns `dim` from 0."""
    op = "metis::cpu_cat"
    if not parts:
        raise ValueError(f"{op}: parts must be at least one tensor, got none")
    first = parts[0]
    _on_cpu(op, "parts[0]", first)
    axis = axis_of(op, dim, first.dim())
    for i, part in enumerate(parts):
        name = f"parts[{i}]"
        check_dtype(op, name, part, first.dtype)
        check_device(op, name, part, first, "parts[0]")
        if part.dim() == first.dim():
            check_shape(op, name, part, [*first.shape[:axis], part.shape[axis], *first.shape[axis + 1 :]])
        else:
            check_shape(op, name, part, first.shape)
    return axis


def _on_cpu(op: str, name: str, tensor: Tensor) -> None:
    if tensor.device.type not in ("cpu", "meta"):
        raise ValueError(f"{op}: {name} must be on the CPU, got {tensor.device}")


def _check_decs(op: str, decs: Sequence[Tensor], first: Tensor) -> None:
    if len(decs) > MOST_DECS:
        raise ValueError(f"{op}: decs must be at most {MOST_DECS}, got {len(decs)}")
    for i, dec in enumerate(decs):
        _check_scalar(op, f"decs[{i}]", dec, first, "a")


def _check_scalar(op: str, name: str, tensor: Tensor, first: Tensor, like: str) -> None:
    check_dtype(op, name, tensor, torch.float32)
    check_shape(op, name, tensor, [])
    check_device(op, name, tensor, first, like)


def _check_thin(op: str, name: str, left: Tensor, right: Tensor, size: Sequence[int], first: Tensor, like: str) -> None:
    """Of a product [m, r] @ [r, n] that something of `size` is added to."""
    for side, factor in (("left", left), ("right", right)):
        label = side if name == "left and right" else f"the {side} of {name}"
        check_dtype(op, label, factor, *FACTORS)
        check_device(op, label, factor, first, like)
    m, n = size
    if left.dim() != 2 or right.dim() != 2 or differ([*left.shape, n], [m, *right.shape]):
        got = f"{list(left.shape)} and {list(right.shape)}"
        raise ValueError(f"{op}: {name} must be [{m}, r] and [r, {n}], got {got}")
