"""What quantizing an operand does to it, and to a product that reads it, as numbers: plain torch, on any tensors.

`operand_statistics` is of one operand under one `QuantSpec`, `product_error` of a product. `metis_compile.monitor`
records them while a model trains.
"""

from metis_compile.statistics.operand import FIELDS, VECTORS, operand_statistics
from metis_compile.statistics.product import PICKED, left_block, product_error, result_block, right_block
from metis_compile.statistics.what_if import format_specs

__all__ = [
    "FIELDS",
    "PICKED",
    "VECTORS",
    "format_specs",
    "left_block",
    "operand_statistics",
    "product_error",
    "result_block",
    "right_block",
]
