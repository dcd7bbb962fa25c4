"""FP8 operands multiplied by FP8 tensor cores (9.0 and newer), under float32 scales.

    acc = sum over k of element of A * element of B                             scales of rows and tensors come after
    acc += (scale of A * scale of B) * sum over k in 128 of element * element   scales of blocks of 128

Hopper's FP8 tensor cores keep about 14 bits of a running sum: each step of 128 along k is summed there, and the steps
in float32 registers.

Operands that lie along k are FP8 from the load on, and go from shared memory into the tensor cores: bytes that become
FP8 later go through registers. Hopper takes no others from there; as FP8 they would not even be copied ahead of time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metis_compile.compat import TritonTemplate
from metis_compile.kernels.gemm.operand import Operand
from metis_compile.kernels.gemm.template_base import EPILOGUE, PROLOGUE, Config, grid

LARGE = (Config(128, 256, 128, 3, 8), Config(256, 128, 128, 3, 8))
MEDIUM = (
    Config(128, 128, 128, 4, 8),
    Config(64, 256, 128, 3, 8),
    Config(64, 128, 128, 4, 8),
    Config(128, 64, 128, 4, 4),
    Config(64, 64, 128, 4, 4),
    Config(16, 64, 128, 4, 4),
)
STEPWISE = (  # scales of steps take registers too
    Config(64, 256, 128, 3, 8),
    Config(64, 128, 128, 4, 8),
    Config(64, 64, 128, 4, 4),
    Config(128, 128, 128, 4, 8),
    Config(128, 64, 128, 4, 4),
    Config(16, 64, 128, 4, 4),
)
CONSUMER = (
    Config(128, 128, 128, 3, 8),
    Config(128, 64, 128, 3, 8),
    Config(64, 128, 128, 3, 8),
    Config(64, 64, 128, 4, 4),
    Config(16, 64, 128, 4, 4),
)
TYPES = {torch.float8_e4m3fn: "tl.float8e4nv", torch.float8_e5m2: "tl.float8e5"}

LOOP = """
    {% for X, TYPE, K_AXIS in [("A", A_TYPE, A_K_AXIS), ("B", B_TYPE, B_K_AXIS)] %}
    {% if K_AXIS == -1 %}
    {{X}} = {{X}}.to(tl.pointer_type({{TYPE}}))
    {% endif %}
    {% endfor %}
    k = tl.arange(0, BLOCK_K).to(INDEX_DTYPE)
    for step in range(first_step, end_step):
        at = step * BLOCK_K + k
        a = load_bytes(A, a_rows, at, K, {{stride("A", A_ROW_AXIS)}}, {{stride("A", A_K_AXIS)}}, EVEN_K)
        b = load_bytes(B, b_rows, at, K, {{stride("B", B_ROW_AXIS)}}, {{stride("B", B_K_AXIS)}}, EVEN_K)
        part = tl.dot(a.to(A_TYPE, bitcast=True), tl.trans(b.to(B_TYPE, bitcast=True)))
        {% if A_PER_STEP %}
        a_step = A_SCALES + a_rows // A_ACROSS * ({{stride("A_SCALES", A_ROW_AXIS)}})
        part *= tl.load(a_step + step * BLOCK_K // A_ALONG * ({{stride("A_SCALES", A_K_AXIS)}}))[:, None]
        {% endif %}
        {% if B_PER_STEP %}
        b_step = B_SCALES + b_rows // B_ACROSS * ({{stride("B_SCALES", B_ROW_AXIS)}})
        part *= tl.load(b_step + step * BLOCK_K // B_ALONG * ({{stride("B_SCALES", B_K_AXIS)}}))[None, :]
        {% endif %}
        acc += part
"""

TEMPLATE = TritonTemplate(name="metis_gemm_fp8", grid=grid, source=PROLOGUE + LOOP + EPILOGUE)


def supports(a: Operand, b: Operand, capability: int) -> bool:
    """Whether this template multiplies them on such a GPU."""
    known = all(x.spec.element.dtype in TYPES and x.spec.fmt.scale_type.kind == "float32" for x in (a, b))
    return capability >= 90 and known


def configs(a: Operand, b: Operand, capability: int) -> Sequence[Config]:
    """Tiles worth timing, the likeliest first. Hopper has two sums in registers, 12.x operands too."""
    if capability >= 120:
        return CONSUMER
    if a.per_step or b.per_step:
        return STEPWISE
    return (*LARGE, *MEDIUM) if capability >= 100 else MEDIUM


def extra_constants(a: Operand, b: Operand) -> dict[str, str]:
    """The constants of the loop."""
    types = {name: x.spec.element.dtype for name, x in (("A_TYPE", a), ("B_TYPE", b))}
    return {name: TYPES[dtype] for name, dtype in types.items() if dtype is not None}
