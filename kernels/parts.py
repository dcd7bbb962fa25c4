"""What the kernels of every device agree on: the shapes of stored parts, and numbers that follow from a spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.blocks import BlockLayout

__all__ = ["e8m0_carry", "part_shapes", "tensor_target"]


def part_shapes(spec: QuantSpec, shape: Sequence[Any], axis: int) -> tuple[list[Any], list[Any] | None]:
    """The shapes of the codes and of the block scales, None for what the format has not."""
    layout = BlockLayout.of(spec, len(shape), axis)
    codes = list(shape)
    if spec.element.bits == 4:
        codes[layout.axis] = (shape[layout.axis] + 1) // 2
    return codes, None if layout.tensor else layout.scales_shape(shape)


def tensor_target(spec: QuantSpec) -> float | None:
    """What the largest magnitude of a tensor is scaled to, None where the format has no scale of the whole tensor."""
    if spec.fmt.tensor_scale:
        return spec.largest_scale * 6.0
    return spec.element.max if spec.block == "tensor" else None


def e8m0_carry(spec: QuantSpec) -> int:
    """What is added to the bits of an amax before its exponent is taken: see numerics.scales."""
    element = spec.element
    if spec.fmt.scale != "e8m0":
        return 0
    if spec.guard == "round_up" or spec.scale_mode == "rceil":
        return 2**23 - 1 - int((element.max / 2.0**element.max_exponent - 1) * 2**23)
    return 2 ** (22 - element.mantissa_bits) if spec.scale_mode == "even" else 0
