"""The constants that decode an operand in Triton: see `tiles`."""

from __future__ import annotations

from typing import Any

from metis_compile.kernels.gemm.operand import Operand
from metis_compile.numerics.number_types import Element

LARGEST_EXPONENT = 127  # of bfloat16


def excess(element: Element) -> int:
    """What the exponent lacks where a code's bits lie at bfloat16's; 0 for codes that are the upper bits of float16."""
    is_half = element.exponent_bits == 5 and element.infinity is not None and element.signed
    return 0 if is_half else 126 + element.min_exponent


def scaled_down(operand: Operand) -> int:
    """By what power of two a tile under minifloat scales is smaller, so that scales times 2^excess are in range."""
    grid = operand.spec.fmt.scale_type.grid
    return max(0, excess(operand.spec.element) + grid.max_exponent - LARGEST_EXPONENT) if grid else 0


def decoding(operand: Operand) -> dict[str, Any]:
    """Constants of `tiles.unscaled_tile` and `tiles.scaled`, but for names of kinds. SCALE_...: 0 without a grid.

    Raises ValueError for elements that these do not decode.
    """
    element, grid = operand.spec.element, operand.spec.fmt.scale_type.grid
    paired = element.codes_per_byte == 2
    if not element.signed or (paired and element.largest_code < 7) or element.mantissa_bits > 3:
        raise ValueError(
            f"metis::gemm decodes elements with a sign and at most 3 bits of mantissa, of 4 bits without NaN, "
            f"got {element.name!r}"
        )
    return {
        "PAIRED_CODES": paired,
        "BITS": element.bits,
        "MANTISSA": element.mantissa_bits,
        "EXCESS": excess(element),
        "LARGEST_CODE": element.largest_code,
        "SCALE_BITS": grid.bits if grid else 0,
        "SCALE_MANTISSA": grid.mantissa_bits if grid else 0,
        "SCALE_EXCESS": excess(grid) if grid else 0,
        "SCALE_LARGEST_CODE": grid.largest_code if grid else 0,
        "SCALE_SIGNED": grid.signed if grid else False,
        "DOWN": scaled_down(operand),
    }
