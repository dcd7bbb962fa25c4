"""The Triton quantize kernel compiled for GPUs that need not be there."""

from __future__ import annotations

from typing import Any

from cross_compile import CrossCompiled, cross_compile

from metis_compile.kernels.parts import e8m0_carry
from metis_compile.numerics import QuantSpec


def quantize_kernel(text: str, capability: int, dtype: str, **changed: Any) -> CrossCompiled:
    """The kernel for both orientations of wide matrices whose rows are aligned, as the wrapper would launch it."""
    from metis_compile.kernels.quantize import tiles

    spec = QuantSpec.parse(text)
    block = int(spec.block.split("x")[1])
    size = 4 if dtype == "fp32" else 2
    tile = tiles.tile_for(spec, 4096, size, changed.get("RANK", 0), changed.get("HADAMARD"))
    stored = "*fp32" if spec.fmt.scale == "fp32" else "*u8"
    pointers = {"x": f"*{dtype}", "mean": "*fp32", "amax": "*fp32", "seed": "*i64", "tensor_scale": "*fp32"}
    pointers |= {"thin_left": "*bf16", "thin_right": "*bf16", "signs": "*fp32"}
    pointers |= {"row_codes": "*u8", "row_scales": stored, "column_codes": "*u8", "column_scales": stored}
    sizes = dict.fromkeys(("rows", "columns", "packed_columns", "scale_columns", "rank"), "i32")
    sizes = {name: kind for name, kind in sizes.items() if name not in changed}
    constants = {
        "BLOCK": block,
        "SQUARE": spec.orientation_free,
        "ELEMENT": spec.element.name,
        "SCALE": spec.fmt.scale,
        "ROUNDING": spec.rounding,
        "LARGEST_SCALE": spec.largest_scale,
        "GUARD": spec.guard,
        "SELECT": spec.select,
        "CARRY": e8m0_carry(spec),
        "ALONG_ROWS": True,
        "ALONG_COLUMNS": not spec.orientation_free,
        "ROW_SWIZZLED": False,
        "COLUMN_SWIZZLED": False,
        "SUBTRACT": False,
        "RANK": 0,
        "HADAMARD": None,
        "HARDWARE_FP8": capability >= 89,
        "WIDE": False,
        "TILE_ROWS": tile.rows,
        "TILE_COLUMNS": tile.columns,
        **changed,
    }
    return cross_compile(
        tiles.quantize_tiles_kernel,
        {**pointers, **sizes, "row_stream": "i32", "column_stream": "i32"},
        constants,
        capability,
        aligned=[*pointers, *sizes],
        num_warps=tile.warps,
        enable_fp_fusion=False,
    )
