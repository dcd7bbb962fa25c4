"""What the kernels of every device agree on: numbers that follow from a spec."""

from __future__ import annotations

from metis_compile.numerics import QuantSpec

__all__ = ["e8m0_carry", "tensor_target"]


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
