"""The Triton quantize kernel compiled for GPUs that need not be there."""

from __future__ import annotations

from typing import Any

import torch
from cross_compile import CrossCompiled, cross_compile

from metis_compile.kernels.quantize.constants import constants_of
from metis_compile.numerics import QuantSpec


def quantize_kernel(text: str, capability: int, dtype: str, **changed: Any) -> CrossCompiled:
    """The kernel for both orientations of wide matrices whose rows are aligned, as the wrapper would launch it."""
    from metis_compile.kernels.quantize import tiles

    spec = QuantSpec.parse(text)
    size = 4 if dtype == "fp32" else 2
    tile = tiles.tile_for(spec, 4096, size, changed.get("RANK", 0), changed.get("HADAMARD"))
    stored = "*fp32" if spec.fmt.scale_dtype == torch.float32 else "*u8"
    pointers = {"x": f"*{dtype}", "mean": "*fp32", "amax": "*fp32", "seed": "*i64", "tensor_scale": "*fp32"}
    pointers |= {"thin_left": "*bf16", "thin_right": "*bf16", "signs": "*fp32"}
    pointers |= {"row_codes": "*u8", "row_scales": stored, "column_codes": "*u8", "column_scales": stored}
    sizes = dict.fromkeys(("rows", "columns", "packed_columns", "scale_columns", "rank"), "i32")
    sizes = {name: kind for name, kind in sizes.items() if name not in changed}
    constants = {
        **constants_of(spec, capability),
        "ALONG_ROWS": True,
        "ALONG_COLUMNS": not spec.orientation_free,
        "ROW_SWIZZLED": False,
        "COLUMN_SWIZZLED": False,
        "SUBTRACT": False,
        "RANK": 0,
        "HADAMARD": None,
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
