"""Packed operands multiplied as they are, on GPUs with block-scaled tensor cores (10.x and 12.x).

    acc = sum over blocks of (scale of A * scale of B) * sum over k in the block of element of A * element of B

with OCP MX v1.0's E8M0 scales per 32 of any of its elements (`kind::mxf4`, `kind::mxf8f6f4`), and NVFP4's E4M3 scales
per 16 (`kind::mxf4nvf4`). `tl.dot_scaled` takes scales as [rows, blocks] and lays them out for the hardware itself: on
10.x through registers, unless they lie swizzled (`numerics/swizzle.py`), for 128 rows or more of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from metis_compile.compat import TritonTemplate
from metis_compile.kernels.capability import copies_scales
from metis_compile.kernels.gemm.operand import Operand
from metis_compile.kernels.gemm.template_base import EPILOGUE, PROLOGUE, Config, grid
from metis_compile.numerics.swizzle import TILE_ROWS

# By compute capability, 100 or 120, and the bits of the wider element: what fits in 227 and in 99 KB of shared memory.
# On 12.x sums and operands are in registers too.
CONFIGS = {
    (100, 4): (
        Config(128, 256, 256, 3, 8),
        Config(128, 128, 256, 4, 8),
        Config(128, 128, 256, 3, 4),
        Config(128, 128, 128, 4, 4),
        Config(128, 64, 256, 4, 4),
        Config(128, 64, 128, 4, 4),
    ),
    (100, 8): (
        Config(128, 256, 128, 4, 8),
        Config(128, 128, 128, 4, 8),
        Config(128, 128, 256, 3, 4),
        Config(128, 128, 128, 4, 4),
        Config(128, 64, 256, 4, 4),
        Config(128, 64, 128, 4, 4),
    ),
    (120, 4): (
        Config(128, 128, 256, 3, 8),
        Config(128, 64, 256, 3, 8),
        Config(64, 128, 256, 3, 8),
        Config(128, 64, 128, 4, 4),
        Config(128, 128, 128, 4, 8),
    ),
    (120, 8): (
        Config(128, 128, 128, 3, 8),
        Config(128, 64, 128, 3, 8),
        Config(64, 64, 128, 4, 4),
        Config(128, 128, 64, 4, 8),
        Config(64, 128, 128, 3, 4),
    ),
}

# What the instructions take, elements by the names that `tl.dot_scaled` has for them.
ELEMENTS = {"e2m1", "e4m3", "e5m2"}
SCALES = {torch.float8_e4m3fn, torch.float8_e8m0fnu}

LOOP = """
    for step in range(first_step, end_step):
        {% for X, x, PACKED_K, E4M3_SCALES, SWIZZLED, ROW_AXIS, K_AXIS, SIZE, pid in [
            ("A", "a", A_PACKED_K, A_E4M3_SCALES, A_SWIZZLED, A_ROW_AXIS, A_K_AXIS, "M", "pid_m"),
            ("B", "b", B_PACKED_K, B_E4M3_SCALES, B_SWIZZLED, B_ROW_AXIS, B_K_AXIS, "N", "pid_n"),
        ] %}
        {% set unit = 2 if PACKED_K else 1 %}
        {{x}}_at = (step * (BLOCK_K // {{unit}}) + tl.arange(0, BLOCK_K // {{unit}})).to(INDEX_DTYPE)
        {{x}} = load_bytes(
            {{X}}, {{x}}_rows, {{x}}_at, tl.cdiv(K, {{unit}}), {{stride(X, ROW_AXIS)}}, {{stride(X, K_AXIS)}}, EVEN_K
        )
        {% if SWIZZLED %}
        {{x}}_scales = load_swizzled_scales(
            {{X}}_SCALES, {{pid}}, tl.cdiv({{SIZE}}, 128), step * (BLOCK_K // {{X}}_ALONG), tl.cdiv(K, 4 * {{X}}_ALONG),
            BLOCK_{{SIZE}}, BLOCK_K // {{X}}_ALONG, EVEN_K,
        )
        {% else %}
        {{x}}_scales = load_scales(
            {{X}}_SCALES, {{x}}_rows, step * (BLOCK_K // {{X}}_ALONG), tl.cdiv(K, {{X}}_ALONG),
            {{stride(X + "_SCALES", ROW_AXIS)}}, {{stride(X + "_SCALES", K_AXIS)}},
            {{X}}_ACROSS, BLOCK_K // {{X}}_ALONG, EVEN_K,
        )
        {% if E4M3_SCALES %}
        {{x}}_scales = {{x}}_scales.to(tl.float8e4nv, bitcast=True)
        {% endif %}
        {% endif %}
        {% endfor %}
        acc = tl.dot_scaled(a, a_scales, A_ELEMENT, tl.trans(b), b_scales, B_ELEMENT, acc)
"""

TEMPLATE = TritonTemplate(name="metis_gemm_block_scaled", grid=grid, source=PROLOGUE + LOOP + EPILOGUE)


def supports(a: Operand, b: Operand, capability: int) -> bool:
    """Whether this template multiplies them on such a GPU: packed along k, under scales of one kind."""
    scales = {x.spec.fmt.scale_dtype for x in (a, b)}
    if not (scales <= SCALES and {x.spec.element.name for x in (a, b)} <= ELEMENTS):
        return False
    if capability < 100 or ((a.swizzled or b.swizzled) and not copies_scales(capability)):
        return False
    return len(scales) == 1 and "rows" not in (a.packed, b.packed)


def configs(a: Operand, b: Operand, capability: int) -> Sequence[Config]:
    """Tiles worth timing, the likeliest first."""
    found = CONFIGS[120 if capability >= 120 else 100, max(a.spec.element.bits, b.spec.element.bits)]
    least_m, least_n = (TILE_ROWS if x.swizzled else 0 for x in (a, b))
    return [c for c in found if c.block_m >= least_m and c.block_n >= least_n]


def extra_constants(a: Operand, b: Operand) -> dict[str, Any]:
    """The constants of the loop: there are none."""
    return {}
