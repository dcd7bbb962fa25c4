"""What the quantize kernel is given, and what of it is refused. No Triton here: it is also asked while tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.formats import tiled_blocks
from metis_compile.numerics.quantize import part_shapes
from metis_compile.ops.checks import (
    axis_of,
    check_axis,
    check_device,
    check_dtype,
    check_seed,
    check_shape,
    check_stream,
    check_swizzled,
    differ,
    spec_of,
)

INPUTS = (torch.float32, torch.bfloat16, torch.float16)
FACTORS = (torch.float32, torch.bfloat16)


class Source(NamedTuple):
    """What is quantized: (x - mean - left @ right) H, all tensors contiguous.

    x: float32, bfloat16 or float16. mean: float32, as long as x's last dimension. left, right: [rows, rank] and
    [rank, columns] for x [rows, columns], both float32 or both bfloat16. signs: 16 float32, those of H.
    """

    x: Tensor
    mean: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    signs: Tensor | None = None

    @property
    def rank(self) -> int:
        """Columns of the left factor, 0 without one."""
        return 0 if self.left is None else self.left.shape[1]

    @property
    def made(self) -> bool:
        """Whether it takes more than loading x and subtracting a row."""
        return self.left is not None or self.signs is not None

    def constants(self, axis: int) -> dict[str, Any]:
        """Those of `conditioned_tile`. axis: of the transform, if any, from 0."""
        last = self.x.dim() - 1
        return {
            "SUBTRACT": self.mean is not None,
            "RANK": 0 if self.left is None else 16 if self.rank <= 16 else 32,
            "HADAMARD": None if self.signs is None else 1 if axis == last else 0,
        }

    def check(self, op: str) -> None:
        """Raises TypeError or ValueError for tensors that don't go together, or lie where no kernel runs."""
        x, mean, left, right, signs = self
        check_dtype(op, "x", x, *INPUTS)
        if x.device.type not in ("cuda", "meta") and not _interpreted():
            raise ValueError(f"{op}: x must be on a CUDA device, got {x.device}")
        for name, tensor in zip(self._fields[1:], self[1:], strict=True):
            if tensor is not None:
                check_dtype(op, name, tensor, *(FACTORS if name in ("left", "right") else (torch.float32,)))
                check_device(op, name, tensor, x)
        if mean is not None and differ([mean.numel()], x.shape[-1:]):
            raise ValueError(
                f"{op}: mean must have an element for each column of x {list(x.shape)}, got shape {list(mean.shape)}"
            )
        if (left is None) != (right is None):
            raise ValueError(f"{op}: left and right must be given together, got {'right' if left is None else 'left'}")
        if left is not None and right is not None:
            if left.dtype != right.dtype:
                raise TypeError(f"{op}: left and right must be of one dtype, got {left.dtype} and {right.dtype}")
            if x.dim() != 2 or left.dim() != 2 or differ([*left.shape, x.shape[1]], [x.shape[0], *right.shape]):
                raise ValueError(
                    f"{op}: left and right must be [rows, rank] and [rank, columns] for x [rows, columns], "
                    f"got {list(left.shape)} and {list(right.shape)} for {list(x.shape)}"
                )
        if signs is not None and differ([signs.numel()], [16]):
            raise ValueError(f"{op}: signs must have 16 elements, got shape {list(signs.shape)}")

    def check_transform(self, op: str, argument: str, axes: Sequence[int]) -> None:
        """Raises ValueError where the transform does not go along the one axis of `axes`, in whole blocks."""
        axis, last = axes[0], self.x.dim() - 1
        if len(axes) > 1 or axis < last - 1:
            got = list(axes) if argument == "axes" else axis
            raise ValueError(f"{op}: {argument} must be one of the last two with signs, got {got}")
        length = self.x.shape[axis]
        if differ([length % 16], [0]):
            raise ValueError(f"{op}: x must have a multiple of 16 along axis {axis} with signs, got {length}")

    def check_strides(self, op: str, **others: Tensor) -> None:
        """Raises ValueError for what is not contiguous. Not asked while tracing: compiled code makes it so."""
        given = {name: tensor for name, tensor in zip(self._fields, self, strict=True) if tensor is not None}
        for name, tensor in (given | others).items():
            if not tensor.is_contiguous():
                raise ValueError(
                    f"{op}: {name} must be contiguous, got strides {tensor.stride()} for shape {list(tensor.shape)}"
                )


def check_amax(op: str, source: Source, axis: int) -> int:
    """`axis` from 0, if the largest magnitude of `source` can be found. Raises TypeError, ValueError or IndexError."""
    source.check(op)
    axis = axis_of(op, axis, source.x.dim())
    if source.signs is not None:
        source.check_transform(op, "axis", [axis])
    return axis


def check_tiles(
    op: str,
    source: Source,
    amax: Tensor | None,
    seed: Tensor | None,
    text: str,
    axes: Sequence[int],
    streams: Sequence[int],
    swizzled: Sequence[int] = (),
) -> tuple[QuantSpec, list[int], list[int]]:
    """The spec, and axes and swizzled from 0, if it can quantize so. Raises TypeError, ValueError or IndexError."""
    spec = spec_of(op, "spec", text)
    if spec.block_shape is None:
        raise ValueError(f"{op}: spec's block must be one of {', '.join(tiled_blocks())}, got {text!r}")
    source.check(op)
    x, last = source.x, source.x.dim() - 1
    given = list(axes)
    axes = [check_axis(op, spec, axis, x.dim()) for axis in axes]
    if len(axes) != 1 and sorted(axes) != [last - 1, last]:
        raise ValueError(f"{op}: axes must be one, or the last two of {x.dim()}, got {given}")
    if source.mean is not None and axes[0] < last - 1:
        raise ValueError(f"{op}: axes must be among the last two with a mean, got {given}")
    if source.signs is not None:
        source.check_transform(op, "axes", axes)
    if (amax is not None) != spec.fmt.tensor_scale:
        needs, got = "be given" if spec.fmt.tensor_scale else "be None", "None" if amax is None else list(amax.shape)
        raise ValueError(f"{op}: amax must {needs} for {text!r}, got {got}")
    if amax is not None:
        check_dtype(op, "amax", amax, torch.float32)
        check_shape(op, "amax", amax, [])
        check_device(op, "amax", amax, x)
    check_seed(op, seed, spec, x)
    if len(streams) != len(axes):
        raise ValueError(f"{op}: streams must be one for each of axes {given}, got {list(streams)}")
    for stream in streams:
        check_stream(op, "each of streams", stream)
    if len(axes) > 1 and spec.orientation_free and spec.needs_noise and streams[0] != streams[1]:
        raise ValueError(f"{op}: streams must be equal for {spec.block} blocks, got {list(streams)}")
    chosen = [axis_of(op, axis, x.dim()) for axis in swizzled]
    for axis in chosen:
        check_swizzled(op, "swizzled", spec, axis, x.dim(), list(swizzled))
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(axes):
        raise ValueError(f"{op}: swizzled must be among axes {given}, got {list(swizzled)}")
    return spec, axes, chosen


def outputs_of(
    shape: Sequence[Any], spec: QuantSpec, axes: Sequence[int], swizzled: Sequence[int]
) -> list[tuple[Sequence[Any], torch.dtype]]:
    """Shape and dtype of what is written: codes and block scales for each axis, then the tensor scale, if any."""
    found: list[tuple[Sequence[Any], torch.dtype]] = []
    for axis in axes:
        codes, scales = part_shapes(spec, shape, axis, axis in swizzled)
        found += [(codes, torch.uint8), (scales or [], spec.fmt.scale_dtype)]
    return [*found, ([], torch.float32)] if spec.fmt.tensor_scale else found


def check_out(
    op: str, out: Sequence[Tensor], x: Tensor, spec: QuantSpec, axes: Sequence[int], swizzled: Sequence[int]
) -> None:
    """Raises TypeError or ValueError for `out` that the outputs don't fit into."""
    wanted = outputs_of(x.shape, spec, axes, swizzled)
    if len(out) != len(wanted):
        raise ValueError(f"{op}: out must be {len(wanted)} tensors for {str(spec)!r} and axes {axes}, got {len(out)}")
    for i, (tensor, (shape, dtype)) in enumerate(zip(out, wanted, strict=True)):
        check_dtype(op, f"out[{i}]", tensor, dtype)
        check_shape(op, f"out[{i}]", tensor, shape)
        check_device(op, f"out[{i}]", tensor, x)


def _interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, by its interpreter."""
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)
