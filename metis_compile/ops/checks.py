"""What operators say of an argument that they do not take: the operator, the argument, its value, what is supported.

For real tensors, fake ones and symbolic sizes alike: no check reads a value or puts a guard on a size. Each operator
has one check function, which both its implementation and its fake call, so that tracing refuses what running does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.blocks import BlockLayout, normalize_axis
from metis_compile.numerics.quantize import part_shapes
from metis_compile.numerics.swizzle import can_swizzle, is_swizzled

__all__ = [
    "axis_of",
    "check_amax",
    "check_axis",
    "check_device",
    "check_dtype",
    "check_parts",
    "check_seed",
    "check_shape",
    "check_stream",
    "check_swizzled",
    "differ",
    "spec_of",
]

STREAMS = 2**31  # what numerics.uniform_noise takes


@cache
def spec_of(op: str, argument: str, text: str) -> QuantSpec:
    """The spec that a text spells. Raises ValueError."""
    try:
        return QuantSpec.parse(text)
    except ValueError as error:
        raise ValueError(f"{op}: {argument} must be the text of a QuantSpec, got {text!r}: {error}") from None


def axis_of(op: str, axis: int, ndim: int) -> int:
    """`axis` from 0. Raises IndexError."""
    try:
        return normalize_axis(axis, ndim)
    except IndexError as error:
        raise IndexError(f"{op}: {error}") from None


def check_axis(op: str, spec: QuantSpec, axis: int, ndim: int) -> int:
    """`axis` from 0, along which blocks of `spec` can lie. Raises IndexError, or ValueError for blocks of two axes."""
    try:
        return BlockLayout.of(spec, ndim, axis).axis
    except (IndexError, ValueError) as error:
        raise type(error)(f"{op}: {error}") from None


def check_dtype(op: str, name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    """Raises TypeError for a dtype that is none of these."""
    if tensor.dtype not in dtypes:
        *others, last = map(_short, dtypes)
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise TypeError(f"{op}: {name} must be {wanted}, got {_short(tensor.dtype)}")


def check_device(op: str, name: str, tensor: Tensor, first: Tensor, like: str = "x") -> None:
    """Raises ValueError for a tensor that is not where `first`, the argument `like`, is."""
    if tensor.device != first.device:
        raise ValueError(f"{op}: {name} must be on {first.device} like {like}, got {tensor.device}")


def check_shape(op: str, name: str, tensor: Tensor, shape: Sequence[Any], why: str = "") -> None:
    """Raises ValueError for a tensor that is known to have another shape. why: for the message, as " for length 3"."""
    if differ(tensor.shape, shape):
        raise ValueError(f"{op}: {name} must have shape {list(shape)}{why}, got {list(tensor.shape)}")


def differ(shape: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two shapes are known not to be the same."""
    return len(shape) != len(other) or any(map(_differ, shape, other))


def check_seed(op: str, seed: Tensor | None, spec: QuantSpec, x: Tensor) -> None:
    """Raises for a seed that is no int64 on x's device, that is missing, or that nothing is drawn from."""
    if (seed is not None) != spec.needs_noise:
        needs = "be given" if spec.needs_noise else "be None"
        got = "None" if seed is None else f"{_short(seed.dtype)} {list(seed.shape)}"
        raise ValueError(f"{op}: seed must {needs} for {str(spec)!r}, got {got}")
    if seed is None:
        return
    check_dtype(op, "seed", seed, torch.int64)
    if _differ(seed.numel(), 1):
        raise ValueError(f"{op}: seed must have one element, got shape {list(seed.shape)}")
    check_device(op, "seed", seed, x)


def check_amax(op: str, amax: Tensor | None, spec: QuantSpec, x: Tensor) -> None:
    """Raises for an amax that is no float32 without dimensions on x's device, or that no scale is made of."""
    if amax is None:
        return
    if not spec.holds_amax:
        raise ValueError(f"{op}: amax must be None for {str(spec)!r}, {spec.why_not_held}, got {_short(amax.dtype)}")
    check_dtype(op, "amax", amax, torch.float32)
    check_shape(op, "amax", amax, [])
    check_device(op, "amax", amax, x)


def check_stream(op: str, name: str, stream: int) -> None:
    """Raises ValueError."""
    if not 0 <= stream < STREAMS:
        raise ValueError(f"{op}: {name} must be at least 0 and less than 2^31, got {stream}")


def check_swizzled(op: str, argument: str, spec: QuantSpec, axis: int, ndim: int, got: Any) -> None:
    """Raises ValueError for scales that can't be swizzled. axis: from 0, that of their blocks. got: the argument's."""
    if not can_swizzle(spec):
        raise ValueError(f"{op}: {argument} must be for 1x16 or 1x32 blocks, got {got} for {str(spec)!r}")
    if not axis >= ndim - 2 >= 0:
        raise ValueError(f"{op}: {argument} must be for one of the last two of {ndim} dimensions, got {got}")


def check_parts(op: str, parts: Sequence[Tensor], spec: QuantSpec, axis: int, length: Any) -> None:
    """Raises for `parts` that are not what `metis_compile.numerics.encode` gives of `length` elements along `axis`."""
    text = str(spec)
    names = ["codes", *(["block_scales"] if spec.block != "tensor" else [])]
    names += ["tensor_scale"] if spec.fmt.tensor_scale or spec.block == "tensor" else []
    if len(parts) != len(names):
        raise ValueError(f"{op}: parts of {text!r} must be [{', '.join(names)}], got {len(parts)} tensors")
    shape = list(parts[0].shape)
    axis_from_0 = check_axis(op, spec, axis, len(shape))
    shape[axis_from_0] = length
    swizzled = axis_from_0 >= len(shape) - 2 >= 0 and is_swizzled(spec, len(shape), parts[1].dim())
    codes, scales = part_shapes(spec, shape, axis, swizzled)
    wanted = {
        "codes": (torch.uint8, codes),
        "block_scales": (spec.fmt.scale_dtype, scales or []),
        "tensor_scale": (torch.float32, []),
    }
    for name, part in zip(names, parts, strict=True):
        label, (dtype, sizes) = f"the {name} of parts", wanted[name]
        check_dtype(op, label, part, dtype)
        check_shape(op, label, part, sizes, f" for {text!r} and length {length} along axis {axis}")
        check_device(op, label, part, parts[0], "the codes")


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a != b
    return statically_known_true(a != b)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
