"""Quantized operands of products, of random values, and what their product is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metis_compile.kernels.gemm.op import GEMM
from metis_compile.kernels.gemm.operand import Operand, operand_of
from metis_compile.numerics import QuantSpec, decode, encode

RTOL = 1e-5  # of the largest sum: float32 sums in another order


class Packed(NamedTuple):
    """An operand [rows, k] as it lies, quantized."""

    parts: list[Tensor]
    spec: str
    axis: int
    length: int
    contract: int

    @property
    def operand(self) -> Operand:
        return operand_of(self.parts, self.spec, self.axis, self.contract)

    @property
    def values(self) -> Tensor:
        """[rows, k], or a batch of them."""
        value = decode(self.parts, QuantSpec.parse(self.spec), self.axis, self.length)
        return value if self.contract % value.dim() == value.dim() - 1 else value.mT


def packed(shape: tuple[int, ...], spec: str, *, transposed: bool = False, across: bool = False) -> Packed:
    """Of random values [rows, k]. transposed: it lies as [k, rows]. across: its codes are packed along the rows."""
    rank = len(shape)
    contract = rank - 2 if transposed else rank - 1
    axis = 2 * rank - 3 - contract if across else contract
    sizes = [*shape[:-2], shape[-1], shape[-2]] if transposed else list(shape)
    x = torch.randn(sizes) * torch.randn(sizes).exp()
    return Packed(encode(x, QuantSpec.parse(spec), axis), spec, axis, sizes[axis], contract)


def product(a: Packed, b: Packed, tails: tuple[Tensor, ...] = ()) -> Tensor:
    return GEMM(*a, *b, list(tails))


def expected(a: Packed, b: Packed, tails: tuple[Tensor, ...] = ()) -> Tensor:
    result = a.values @ b.values.mT
    for u, s in zip(tails[::2], tails[1::2], strict=True):
        result = result + u.float() @ s.float()
    return result


def assert_near(actual: Tensor, wanted: Tensor) -> None:
    assert actual.shape == wanted.shape
    torch.testing.assert_close(actual.float(), wanted.float(), rtol=RTOL, atol=RTOL * float(wanted.abs().max()))


SPECS = {
    "nvfp4": "nvfp4 1x16 nearest",
    "nvfp4-2d": "nvfp4 16x16 nearest",
    "mxfp4": "mxfp4 1x32 nearest floor",
    "mxfp8": "mxfp8 1x32 nearest floor",
    "mxfp8_e5m2": "mxfp8_e5m2 1x32 nearest floor",
    "fp8": "fp8 tensor nearest",
    "fp8_e5m2": "fp8_e5m2 tensor nearest",
    "fp8-row": "fp8 row nearest",
    "fp8-128": "fp8 1x128 nearest",
    "fp8-128-2d": "fp8 128x128 nearest",
}
# operands of a product, left and right: a format, and how it lies
LAYOUTS: list[Any] = [
    (("nvfp4", {"transposed": True}), ("nvfp4", {"transposed": True})),  # wgrad
    (("nvfp4", {}), ("nvfp4", {"transposed": True})),  # dgrad
    (("nvfp4", {}), ("nvfp4-2d", {"transposed": True, "across": True})),  # dgrad of a weight packed for fprop
    (("nvfp4-2d", {"transposed": True, "across": True}), ("nvfp4-2d", {"across": True})),
    (("fp8-row", {"transposed": True}), ("fp8-128-2d", {"transposed": True, "across": True})),
    (("fp8-128", {"transposed": True}), ("fp8_e5m2", {"across": True})),
    (("nvfp4", {}), ("mxfp8", {"transposed": True})),
    (("mxfp4", {"transposed": True}), ("mxfp8_e5m2", {})),
    (("nvfp4", {}), ("fp8-128", {})),
]
