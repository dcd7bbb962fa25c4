"""The constants of the quantize kernel that follow from a spec. No Triton here."""

from __future__ import annotations

from typing import Any

import torch

from metis_compile.kernels.parts import e8m0_carry, sum_anchor
from metis_compile.numerics import QuantSpec

# Elements that GPUs of compute capability 8.9 and newer round to with an instruction.
INSTRUCTIONS = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


def constants_of(spec: QuantSpec, capability: int) -> dict[str, Any]:
    """What `tiles.quantize_tiles_kernel` is compiled for. Raises ValueError for elements without a sign.

    BITS to NAN are of the elements, SCALE_... of the grid of minifloat scales, 0 for others. PAIRED: two codes to a
    byte. INSTRUCTION: what rounds elements to nearest on such a GPU, None for arithmetic.
    """
    element, scale = spec.element, spec.fmt.scale_type
    if not element.signed:
        raise ValueError(f"elements must have a sign, got {element.name!r} of {spec.format!r}")
    assert spec.block_shape is not None
    grid = scale.grid
    instruction = INSTRUCTIONS.get(element.dtype) if element.dtype is not None else None
    return {
        "BLOCK": spec.block_shape[1],
        "SQUARE": spec.block_shape[0] > 1,
        "BITS": element.bits,
        "PAIRED": element.codes_per_byte == 2,
        "MANTISSA": element.mantissa_bits,
        "LEAST": element.min_exponent,
        "LARGEST": element.max,
        "INVERSE_LARGEST": 1 / element.max,
        "MAX_EXPONENT": element.max_exponent,
        "NAN": element.nan,
        "SCALE": scale.kind,
        "SCALE_COUNT": 2**grid.magnitude_bits if grid else 0,
        "SCALE_MANTISSA": grid.mantissa_bits if grid else 0,
        "SCALE_LEAST": grid.min_exponent if grid else 0,
        "SCALE_LARGEST": grid.max if grid else 0.0,
        "SCALE_LARGEST_CODE": grid.largest_code if grid else 0,
        "SCALE_NAN": grid.nan if grid else 0,
        "TARGET": spec.tensor_target,
        "POWER_OF_TWO": spec.scale_mode == "power_of_two",
        "ROUNDING": spec.rounding,
        "ROUND_UP": spec.guard == "round_up",
        "GUARD_FACTOR": spec.guard_factor,
        "SELECT": spec.select,
        "SUM_ANCHOR": sum_anchor(spec),
        "CARRY": e8m0_carry(spec),
        "INSTRUCTION": instruction if capability >= 89 and spec.rounding == "nearest" else None,
    }
