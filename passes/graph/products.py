"""The operators that are matrix products: what a pass looks for, and which dtypes it quantizes."""

from __future__ import annotations

import torch

from metis_compile.ops.grouped import GROUPED_MM

aten = torch.ops.aten

# product -> positions of its two matrices among the arguments
PRODUCTS: dict[object, tuple[int, int]] = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
    aten.addbmm.default: (1, 2),
}
# a product for each group of tokens, whose ends are the third argument
GROUPED: dict[object, tuple[int, int]] = {GROUPED_MM: (0, 1), aten._grouped_mm.default: (0, 1)}
OPERANDS = PRODUCTS | GROUPED
SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
