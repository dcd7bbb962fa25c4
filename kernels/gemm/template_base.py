"""What the templates of packed products share: everything but the loop over k.

A template is PROLOGUE, its loop, EPILOGUE. The prologue names the tile's `rows` and `columns`, and for each operand
the rows to read; the loop sums into `acc`; the epilogue applies what scales whole rows or the whole tensor, adds the
tails and hands `acc` to Inductor's own epilogue. Tiles are visited in groups of GROUP_M rows of tiles, so that what one
reads of B is still in the L2 cache when the next reads it.

A grouped product (see `metis::grouped_gemm`) is of rows (GROUPED_ROWS), where each group begins a new tile of rows and
has a matrix of B, or of k (GROUPED_K), where each has a part of k and a matrix of the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from metis_compile.compat import SymbolicGridFn
from metis_compile.kernels.gemm.constants import decoding
from metis_compile.kernels.gemm.operand import Operand

GROUP_M = 8

PROLOGUE = """
{{def_kernel(
    *(["A"] + (["A_SCALES"] if A_HAS_SCALES else []) + (["A_DEC"] if A_HAS_DEC else [])
    + ["B"] + (["B_SCALES"] if B_HAS_SCALES else []) + (["B_DEC"] if B_HAS_DEC else [])
    + (["ENDS"] if GROUPED_ROWS or GROUPED_K else [])
    + (["LEFT_0", "RIGHT_0"] if TAILS > 0 else []) + (["LEFT_1", "RIGHT_1"] if TAILS > 1 else []))
)}}
    M = {{size(None, -2)}}
    N = {{size(None, -1)}}
    K = K_UNIT * ({{size("B" if K_FROM_B else "A", K_AXIS)}})
    {% if BATCHED or GROUPED_K %}
    batch = tl.program_id(1).to(tl.int64)
    {% endif %}
    {% if BATCHED %}
    {% for X in ["A", "B"] %}
    {{X}} += batch * ({{stride(X, 0)}})
    {% if (A_HAS_SCALES if X == "A" else B_HAS_SCALES) %}
    {{X}}_SCALES += batch * ({{stride(X + "_SCALES", 0)}})
    {% endif %}
    {% endfor %}
    {% endif %}
    {% if A_E4M3_SCALES %}
    A_SCALES = A_SCALES.to(tl.pointer_type(tl.uint8))
    {% endif %}
    {% if B_E4M3_SCALES %}
    B_SCALES = B_SCALES.to(tl.pointer_type(tl.uint8))
    {% endif %}

    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M) + MORE_TILES_M
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP_M * tiles_n)
    group_size = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    pid_m = group * GROUP_M + pid % group_size
    pid_n = pid % (GROUP_M * tiles_n) // group_size
    {% if GROUPED_ROWS %}
    group, first_row, end_row = rows_of_tile(ENDS, {{size("ENDS", 0)}}, pid_m, M, BLOCK_M)
    rows = (first_row + tl.arange(0, BLOCK_M)).to(INDEX_DTYPE)
    some = group < {{size("ENDS", 0)}}
    first_step = 0
    end_step = tl.where(some, tl.cdiv(K, BLOCK_K), 0)
    matrix = tl.where(some, group, 0).to(tl.int64)
    B += matrix * ({{stride("B", 0)}})
    {% if B_HAS_SCALES %}
    B_SCALES += matrix * ({{stride("B_SCALES", 0)}})
    {% endif %}
    {% else %}
    end_row = M
    rows = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(INDEX_DTYPE)
    {% if GROUPED_K %}
    first_k = tl.load(ENDS + batch - 1, mask=batch > 0, other=0).to(INDEX_DTYPE)
    end_k = tl.minimum(tl.load(ENDS + batch), K).to(INDEX_DTYPE)
    first_step = first_k // BLOCK_K
    end_step = tl.where(end_k > first_k, tl.cdiv(end_k, BLOCK_K), first_step)
    {% else %}
    first_step = 0
    end_step = tl.cdiv(K, BLOCK_K)
    {% endif %}
    {% endif %}
    columns = (pid_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(INDEX_DTYPE)
    # what lies past the end reads rows that are there, and is not stored
    a_rows = rows % tl.maximum(M, 1)
    b_rows = columns % N
    {% if A_PACKED_ROWS %}
    a_bytes = (pid_m * (BLOCK_M // 2) + tl.arange(0, BLOCK_M // 2)).to(INDEX_DTYPE) % ((M + 1) // 2)
    {% else %}
    a_bytes = a_rows
    {% endif %}
    {% if B_PACKED_ROWS %}
    b_bytes = (pid_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)).to(INDEX_DTYPE) % ((N + 1) // 2)
    {% else %}
    b_bytes = b_rows
    {% endif %}
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
"""

EPILOGUE = """
    {% if A_ROW_SCALES %}
    acc *= tl.load(A_SCALES + a_rows * ({{stride("A_SCALES", A_ROW_AXIS)}}), mask=rows < M, other=0.0)[:, None]
    {% endif %}
    {% if B_ROW_SCALES %}
    acc *= tl.load(B_SCALES + b_rows * ({{stride("B_SCALES", B_ROW_AXIS)}}))[None, :]
    {% endif %}
    {% if A_HAS_DEC %}
    acc *= tl.load(A_DEC)
    {% endif %}
    {% if B_HAS_DEC %}
    acc *= tl.load(B_DEC)
    {% endif %}
    {% for i in range(TAILS) %}
    acc = tail_of(
        acc, LEFT_{{i}}, RIGHT_{{i}}, rows, columns, M, N, {{size("RIGHT_%d" % i, 0)}},
        {{stride("LEFT_%d" % i, 0)}}, {{stride("LEFT_%d" % i, 1)}},
        {{stride("RIGHT_%d" % i, 0)}}, {{stride("RIGHT_%d" % i, 1)}}, BLOCK_R,
    )
    {% endfor %}

    idx_m = rows[:, None]
    idx_n = columns[None, :]
    mask = (idx_m < end_row) & (idx_n < N)
    {% if BATCHED or GROUPED_K %}
    idx_q = batch.to(INDEX_DTYPE)
    {{store_output(("idx_q", "idx_m", "idx_n"), "acc", "mask", val_shape=("BLOCK_M", "BLOCK_N"))}}
    {% else %}
    {{store_output(("idx_m", "idx_n"), "acc", "mask", val_shape=("BLOCK_M", "BLOCK_N"))}}
    {% endif %}

from metis_compile.kernels.gemm.tiles import (
    high_codes, load_bytes, load_scales, load_swizzled_scales, low_codes, rows_of_tile, scaled, tail_of, unscaled_tile,
    within,
)
"""


class Config(NamedTuple):
    """One tile that a template may compute: its sizes, and how Triton runs it."""

    block_m: int
    block_n: int
    block_k: int
    stages: int
    warps: int


@SymbolicGridFn
def grid(*sizes_and_meta: Any, cdiv: Any) -> tuple[Any, Any, Any]:
    """One program for each tile of each matrix."""
    *batch, m, n, meta = sizes_and_meta
    return (cdiv(m, meta["BLOCK_M"]) + meta["MORE_TILES_M"]) * cdiv(n, meta["BLOCK_N"]), batch[0] if batch else 1, 1


def constants(
    a: Operand,
    b: Operand,
    config: Config,
    *,
    even_k: bool,
    batched: bool = False,
    tails: int = 0,
    grouped: str | None = None,
    groups: int = 0,
) -> dict[str, Any]:
    """The template's constants but for those of its loop. grouped: "rows" or "k", of so many groups."""
    k_from_b = a.packed == "k" and b.packed != "k"
    k_operand = b if k_from_b else a
    result: dict[str, Any] = {
        "K_FROM_B": k_from_b,
        "K_UNIT": 2 if k_operand.packed == "k" else 1,
        "K_AXIS": k_operand.contracted,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_R": 16,
        "GROUP_M": GROUP_M,
        "EVEN_K": even_k,
        "BATCHED": batched,
        "GROUPED_ROWS": grouped == "rows",
        "GROUPED_K": grouped == "k",
        "MORE_TILES_M": groups + 1 if grouped == "rows" else 0,  # that are not full, one of rows of no group
        "TAILS": tails,
        "num_stages": config.stages,
        "num_warps": config.warps,
    }
    for name, operand in (("A", a), ("B", b)):
        across, along = operand.block
        result |= {
            f"{name}_ELEMENT": repr(operand.spec.element.name),
            f"{name}_SCALE": repr(operand.spec.fmt.scale_type.kind),
            f"{name}_E4M3_SCALES": operand.spec.fmt.scale_dtype == torch.float8_e4m3fn,
            **{f"{name}_{constant}": value for constant, value in decoding(operand).items()},
            f"{name}_ACROSS": max(across, 1),
            f"{name}_ALONG": along,
            f"{name}_HAS_SCALES": operand.scaled,
            f"{name}_SWIZZLED": operand.swizzled,
            f"{name}_HAS_DEC": operand.dec,
            f"{name}_PACKED_K": operand.packed == "k",
            f"{name}_PACKED_ROWS": operand.packed == "rows",
            f"{name}_ROW_SCALES": operand.spec.block == "row",
            f"{name}_IN_REGISTERS": operand.in_registers,
            f"{name}_PER_STEP": operand.per_step,
            f"{name}_ROW_AXIS": operand.rows,
            f"{name}_K_AXIS": operand.contracted,
        }
    return result
