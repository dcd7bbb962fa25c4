"""Packed operands multiplied as bfloat16: any two formats, on any GPU with bfloat16 tensor cores (8.0 and newer).

    acc = sum over k of (element * block scale of A) * (element * block scale of B)           exact but for the sum

E2M1 times E4M3 or E8M0, and FP8 times E8M0, are bfloat16 numbers. Scales that are not (float32, of FP8) multiply the
sum, or the partial sum over their block. Where codes lie two to a byte along k, the tile is split by the parity of k:
the lower codes of A meet the lower codes of B, the upper the upper, and nothing is ever interleaved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metis_compile.compat import TritonTemplate
from metis_compile.kernels.gemm.constants import scaled_down
from metis_compile.kernels.gemm.operand import Operand
from metis_compile.kernels.gemm.template_base import EPILOGUE, PROLOGUE, Config, grid

SMALL = (
    Config(128, 128, 64, 3, 8),
    Config(128, 64, 64, 4, 4),
    Config(64, 64, 64, 4, 4),
    Config(64, 128, 64, 4, 4),
    Config(128, 128, 64, 4, 4),
    Config(64, 64, 128, 3, 4),
    Config(32, 64, 128, 4, 4),
    Config(16, 64, 128, 4, 4),
)
LARGE = (Config(128, 256, 64, 3, 8), Config(256, 128, 64, 3, 8), Config(128, 128, 128, 3, 8))

LOOP = """
    {% macro arguments(X) %}{% for name in varargs %}{{X}}_{{name}}{{", " if not loop.last}}{% endfor %}{% endmacro %}
    k = tl.arange(0, BLOCK_K // 2 if PAIRED else BLOCK_K).to(INDEX_DTYPE)
    for step in range(first_step, end_step):
        {% if PAIRED %}
        at = step * (BLOCK_K // 2) + k
        {% else %}
        at = step * BLOCK_K + k
        {% endif %}
        {% for X, x, ROWS, PACKED_K, IN_REGISTERS, PER_STEP, ROW_AXIS, K_AXIS in [
            ("A", "a", "BLOCK_M", A_PACKED_K, A_IN_REGISTERS, A_PER_STEP, A_ROW_AXIS, A_K_AXIS),
            ("B", "b", "BLOCK_N", B_PACKED_K, B_IN_REGISTERS, B_PER_STEP, B_ROW_AXIS, B_K_AXIS),
        ] %}
        {% set strides = stride(X, ROW_AXIS) ~ ", " ~ stride(X, K_AXIS) %}
        {% set element = arguments(X, "PAIRED_CODES", "BITS", "MANTISSA", "EXCESS", "LARGEST_CODE") %}
        {% set scale = arguments(X, "EXCESS", "SCALE", "SCALE_BITS", "SCALE_MANTISSA", "SCALE_EXCESS",
                                 "SCALE_LARGEST_CODE", "SCALE_SIGNED", "DOWN") %}
        {% if IN_REGISTERS %}
        {{x}}_scales = load_scales(
            {{X}}_SCALES, {{x}}_rows, step * (BLOCK_K // {{X}}_ALONG), tl.cdiv(K, {{X}}_ALONG),
            {{stride(X + "_SCALES", ROW_AXIS)}}, {{stride(X + "_SCALES", K_AXIS)}},
            {{X}}_ACROSS, BLOCK_K // {{X}}_ALONG, EVEN_K,
        )
        {% else %}
        {{x}}_scales = 0
        {% endif %}
        {% if PACKED_K %}
        {{x}}_pairs = load_bytes({{X}}, {{x}}_rows, at, (K + 1) // 2, {{strides}}, EVEN_K).to(tl.uint16)
        {{x}} = low_codes({{x}}_pairs, {{X}}_MANTISSA)
        {{x}}_odd = high_codes({{x}}_pairs, {{X}}_MANTISSA)
        {% elif PAIRED %}
        {{x}} = unscaled_tile(
            {{X}}, {{x}}_rows, {{x}}_bytes, 2 * at, K, {{strides}}, {{element}}, {{ROWS}}, BLOCK_K // 2, EVEN_K,
        )
        {{x}}_odd = unscaled_tile(
            {{X}}, {{x}}_rows, {{x}}_bytes, 2 * at + 1, K, {{strides}}, {{element}}, {{ROWS}}, BLOCK_K // 2, EVEN_K,
        )
        {% else %}
        {{x}} = unscaled_tile(
            {{X}}, {{x}}_rows, {{x}}_bytes, at, K, {{strides}}, {{element}}, {{ROWS}}, BLOCK_K, EVEN_K,
        )
        {% endif %}
        {{x}} = scaled({{x}}, {{x}}_scales, {{scale}}, {{X}}_ALONG // 2 if PAIRED else {{X}}_ALONG)
        {% if PAIRED %}
        {{x}}_odd = scaled({{x}}_odd, {{x}}_scales, {{scale}}, {{X}}_ALONG // 2)
        {% endif %}
        {% if GROUPED_K %}
        {{x}} = within({{x}}, 2 * at if PAIRED else at, first_k, end_k)
        {% if PAIRED %}
        {{x}}_odd = within({{x}}_odd, 2 * at + 1, first_k, end_k)
        {% endif %}
        {% endif %}
        {% endfor %}
        {% if A_PER_STEP or B_PER_STEP %}
        part = tl.dot(a, tl.trans(b))
        {% if PAIRED %}
        part = tl.dot(a_odd, tl.trans(b_odd), part)
        {% endif %}
        {% if A_PER_STEP %}
        a_step = A_SCALES + a_rows // A_ACROSS * ({{stride("A_SCALES", A_ROW_AXIS)}})
        part *= tl.load(a_step + step * BLOCK_K // A_ALONG * ({{stride("A_SCALES", A_K_AXIS)}}))[:, None]
        {% endif %}
        {% if B_PER_STEP %}
        b_step = B_SCALES + b_rows // B_ACROSS * ({{stride("B_SCALES", B_ROW_AXIS)}})
        part *= tl.load(b_step + step * BLOCK_K // B_ALONG * ({{stride("B_SCALES", B_K_AXIS)}}))[None, :]
        {% endif %}
        acc += part
        {% else %}
        acc = tl.dot(a, tl.trans(b), acc)
        {% if PAIRED %}
        acc = tl.dot(a_odd, tl.trans(b_odd), acc)
        {% endif %}
        {% endif %}
    acc *= UNSCALE
"""

TEMPLATE = TritonTemplate(name="metis_gemm_emulated", grid=grid, source=PROLOGUE + LOOP + EPILOGUE)


def supports(a: Operand, b: Operand, capability: int) -> bool:
    """Whether this template multiplies them on such a GPU: a step along k has one float32 scale, or none."""
    longest = max(config.block_k for config in (*SMALL, *LARGE))
    few = all(not x.per_step or x.block[1] >= longest for x in (a, b))
    return capability >= 80 and few and not (a.swizzled or b.swizzled)


def configs(a: Operand, b: Operand, capability: int) -> Sequence[Config]:
    """Tiles worth timing, the likeliest first: large where tensor cores read operands from shared memory."""
    return (*LARGE, *SMALL) if 90 <= capability < 120 else (*SMALL, *LARGE)


def extra_constants(a: Operand, b: Operand) -> dict[str, Any]:
    """The constants of the loop."""
    return {"PAIRED": "k" in (a.packed, b.packed), "UNSCALE": 2.0 ** (scaled_down(a) + scaled_down(b))}
