"""What quantizing a product gains on a device, from its shape alone: for the rules of a policy."""

from __future__ import annotations

from functools import lru_cache

from metis_compile.cost_model.devices import Device, find_device
from metis_compile.cost_model.kernels import unit_of
from metis_compile.numerics.formats import FORMATS

_HIGH_BYTES = 2  # of an element in bfloat16


@lru_cache(maxsize=4096)
def gain(device: str | Device, format: str, m: int, n: int, k: int) -> float:
    """The time of `[m, k] @ [k, n]` in bfloat16 over its time in `format`, quantizing both operands included.

    By the roofline of the device. Neither splits nor that other products may read the same quantization count; a
    product of an operand that is shared gains more. Raises DeviceError for a device that is not known.
    """
    found = find_device(device)
    flops, output = 2 * m * n * k, _HIGH_BYTES * m * n
    high = found.seconds("bfloat16", flops, _HIGH_BYTES * (m * k + k * n) + output)
    bits = _bits(format)
    low = found.seconds(unit_of(format), flops, bits * (m * k + k * n) / 8 + output)
    per_tensor = FORMATS[format].tensor_scale or FORMATS[format].blocks[0] == "tensor"
    passes = 2 if per_tensor else 1  # the largest of the tensor is found before it is quantized
    for elements in (m * k, k * n):
        low += found.seconds("quantize", elements, elements * (_HIGH_BYTES + bits / 8))
        low += (passes - 1) * found.seconds("quantize", 0, elements * _HIGH_BYTES)
    return high / low


def _bits(format: str) -> float:
    """Of an element in memory, with its share of the block scales."""
    found = FORMATS[format]
    block = found.blocks[0]
    scales = 8 / int(block.split("x")[1]) if "x" in block else 0.0
    return found.element_type.bits + scales
