"""One operand of a packed product, as kernels see it: what its elements are, where its scales go, how it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.blocks import BlockLayout
from metis_compile.numerics.swizzle import can_swizzle, is_swizzled, swizzled_shape
from metis_compile.ops.checks import spec_of

parse = cache(QuantSpec.parse)


@dataclass(frozen=True, kw_only=True)
class Operand:
    """What is known of an operand before it has sizes.

    In a product A [m, k] @ B [k, n], the *rows* of an operand are m or n: what k is not.
    """

    spec: QuantSpec
    axis: int  # along which codes are packed, of the tensor as it lies: -1 or -2
    contracted: int  # the axis that the product contracts: -1 or -2
    swizzled: bool = False  # whether its block scales lie as numerics/swizzle.py has it

    @property
    def packed(self) -> str:
        """Where the two codes of a byte lie: "k", "rows", or "none" for one code to a byte."""
        if self.spec.element.codes_per_byte == 1:
            return "none"
        return "k" if self.axis == self.contracted else "rows"

    @property
    def rows(self) -> int:
        """The axis of the rows: -1 or -2."""
        return -3 - self.contracted

    @property
    def block(self) -> tuple[int, int]:
        """(rows, k) that share a block scale; 0 stands for all of them."""
        if self.spec.block_shape is not None:
            return self.spec.block_shape
        return (0, 0) if self.spec.block == "tensor" else (1, 0)

    @property
    def dec(self) -> bool:
        """Whether the last part is the scale of the whole tensor."""
        return self.spec.fmt.tensor_scale or self.spec.block == "tensor"

    @property
    def scaled(self) -> bool:
        """Whether the second part holds scales of blocks or rows."""
        return self.spec.block != "tensor"

    @property
    def part_count(self) -> int:
        return 1 + self.scaled + self.dec

    @property
    def in_registers(self) -> bool:
        """Whether bfloat16 holds an element times its block scale, so that it is applied before the product."""
        return self.spec.is_exact

    @property
    def per_step(self) -> bool:
        """Whether float32 block scales change along k, and are applied to partial sums."""
        return self.spec.fmt.scale_type.kind == "float32" and self.block[1] > 0


def operand_of(parts: Sequence[Any], spec: str, axis: int, contracted: int) -> Operand:
    """The operand with a spec's text, whose packed and contracted axes may count from either end."""
    rank, parsed = parts[0].dim(), parse(spec)
    swizzled = len(parts) > 1 and is_swizzled(parsed, rank, parts[1].dim())
    return Operand(spec=parsed, axis=axis % rank - rank, contracted=contracted % rank - rank, swizzled=swizzled)


def check(
    op: str, argument: str, parts: Sequence[torch.Tensor], spec: str, axis: int, length: Any, contracted: int
) -> None:
    """Raises TypeError or ValueError for parts that are no quantized matrix, or batch of matrices, of this spec."""
    parsed = spec_of(op, f"{argument}_spec", spec)
    if not parts or not 2 <= parts[0].dim() <= 3:
        got = f"{parts[0].dim()} dimensions" if parts else "no parts"
        raise ValueError(f"{op}: {argument} must be a quantized matrix or batch of matrices, got {got}")
    rank = parts[0].dim()
    if contracted % rank < rank - 2 or not -rank <= contracted < rank:
        raise ValueError(f"{op}: the contracted axis of {argument} must be one of its last two, got {contracted}")
    if axis % rank < rank - 2 or not -rank <= axis < rank:
        raise ValueError(f"{op}: the axis of {argument} must be one of its last two, got {axis}")
    operand = operand_of(parts, spec, axis, contracted)
    if operand.axis != operand.contracted and not parsed.orientation_free:
        raise ValueError(
            f"{op}: {argument} must have its {parsed.block} blocks along the axis that is contracted, {contracted}; "
            f"they lie along {axis}"
        )
    if len(parts) != operand.part_count:
        raise ValueError(f"{op}: {argument} of {spec!r} has {operand.part_count} parts, got {len(parts)}")
    _check_parts(op, argument, parts, operand, length)


def _check_parts(op: str, argument: str, parts: Sequence[torch.Tensor], operand: Operand, length: Any) -> None:
    spec, codes = operand.spec, parts[0]
    names = ["codes", *(["block_scales"] if operand.scaled else []), *(["tensor_scale"] if operand.dec else [])]
    dtypes = {"codes": torch.uint8, "block_scales": spec.fmt.scale_dtype, "tensor_scale": torch.float32}
    sizes = list(codes.shape)
    stored = (length + 1) // 2 if spec.element.codes_per_byte == 2 else length
    sizes[operand.axis] = length
    shapes: dict[str, list[Any]] = {"codes": list(codes.shape), "tensor_scale": []}
    shapes["codes"][operand.axis] = stored
    shapes["block_scales"], other = scale_shape(operand, sizes), ""
    if can_swizzle(spec):
        swizzled = swizzled_shape(shapes["block_scales"], operand.axis)
        other = f", or {swizzled} swizzled,"
        if operand.swizzled:
            shapes["block_scales"], other = swizzled, ""
    for name, part in zip(names, parts, strict=True):
        label = f"{op}: the {name} of {argument}"
        if part.dtype != dtypes[name]:
            raise TypeError(f"{label} must be {dtypes[name]} for {str(spec)!r}, got {part.dtype}")
        expected = shapes[name]
        if part.dim() != len(expected) or any(
            statically_known_true(a != b) for a, b in zip(part.shape, expected, strict=True)
        ):
            known = f"{expected}{other if name == 'block_scales' else ''}"
            raise ValueError(f"{label} must have shape {known} for length {length}, got {list(part.shape)}")
        if part.device != codes.device:
            raise ValueError(f"{label} must be on {codes.device} like its codes, got {part.device}")


def scale_shape(operand: Operand, sizes: Sequence[Any]) -> list[Any]:
    """The shape of block scales of a tensor of these sizes, not swizzled."""
    layout = BlockLayout.of(operand.spec, len(sizes), operand.axis)
    shape = list(sizes)
    for dim, size in layout.tiles:
        shape[dim] = (sizes[dim] + size - 1) // size
    if layout.row:
        shape[operand.axis] = 1
    return shape
