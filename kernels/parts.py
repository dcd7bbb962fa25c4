"""What the kernels of every device agree on: numbers that follow from a spec."""

from __future__ import annotations

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.eden import eden_anchor
from metis_compile.numerics.four_over_six import error_anchor
from metis_compile.numerics.scales import e8m0_carry

__all__ = ["e8m0_carry", "sum_anchor", "tensor_target"]


def tensor_target(spec: QuantSpec) -> float | None:
    """What the largest magnitude of a tensor is scaled to, None where the format has no scale of the whole tensor."""
    return spec.tensor_target


def sum_anchor(spec: QuantSpec) -> float:
    """What makes sums over a block exact, in eden and four-over-six; 0 for specs that sum nothing."""
    if spec.rounding == "eden":
        return eden_anchor(spec)
    return 0.0 if spec.select is None else error_anchor(spec)
