"""One kernel: what it calculates and what it moves, in numbers or in symbols of the model's sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch

from metis_compile.cost_model.devices import Device
from metis_compile.numerics.formats import FORMATS

Number: TypeAlias = int | sympy.Expr

KINDS = ("product", "quantization", "tails", "bases", "decode", "attention", "other")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """FLOPs and bytes of one kernel. Numbers may be sympy expressions of sizes that were symbolic."""

    kind: str  # one of KINDS
    name: str
    unit: str  # what calculates it: one of UNITS, or "tf32x3"
    cpu_unit: str = ""  # where that differs on a device that decodes: factors that bfloat16 holds multiply as such
    flops: Number = 0
    nbytes: Number = 0  # read and written
    own_float32: Number = 0  # of nbytes, those of float32 tensors of the model's own
    elements: Number = 0  # that are quantized
    is_part: bool = False  # of another kernel, which has started already
    own: bool = True  # what the model itself calculates; of what a rewrite added the dtype is what the graph says

    def seconds(self, device: Device, sizes: Mapping[str, int]) -> float:
        """By the roofline. sizes: of symbols, by name."""
        if self.kind == "decode" and not device.decodes:
            return 0.0
        unit, nbytes = self.unit, at(self.nbytes, sizes)
        if device.decodes:
            unit = self.cpu_unit or unit
        if device.autocast:
            nbytes -= at(self.own_float32, sizes) / 2
            unit = "bfloat16" if self.own and unit == "float32" else unit
        operations = at(self.elements if unit == "quantize" else self.flops, sizes)
        return device.seconds(unit, operations, nbytes, is_part=self.is_part)


def product(b: Any, m: Any, n: Any, k: Any, *, dtype: torch.dtype) -> Kernel:
    """`[b, m, k] @ [b, k, n]` of matrices that are not quantized."""
    b, m, n, k = map(number, (b, m, n, k))
    nbytes = dtype.itemsize * b * (m * k + k * n + m * n)
    float32 = dtype == torch.float32
    return Kernel(
        kind="product",
        name="product",
        unit="float32" if float32 else "bfloat16",
        flops=2 * b * m * n * k,
        nbytes=nbytes,
        own_float32=nbytes if float32 else 0,
    )


def unit_of(*formats: str) -> str:
    """What multiplies operands of these formats: "fp4", "mxfp8", "fp8", or "bfloat16" where nothing takes them as
    they are packed, because their scales are of two kinds."""
    found = [FORMATS[name] for name in formats]
    if len({(f.scale_type.kind, f.tensor_scale) for f in found}) > 1:
        return "bfloat16"
    if all(f.element_type.bits == 4 for f in found):
        return "fp4"
    return "mxfp8" if found[0].scale_type.kind == "exponent" else "fp8"


def number(size: Any) -> Number:
    """An int, or what a symbolic size is an expression of."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


def at(value: Number, sizes: Mapping[str, int]) -> float:
    """The number that an expression is where symbols have these sizes. Raises KeyError naming one that has none."""
    if isinstance(value, (int, float)):
        return value
    found = {symbol: sizes[str(symbol)] for symbol in value.free_symbols}
    return float(value.subs(found))
