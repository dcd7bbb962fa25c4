"""Quantized operands of products, of random values, and what their product is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metis_compile.kernels.gemm.op import GEMM
from metis_compile.kernels.gemm.operand import Operand, operand_of
from metis_compile.numerics import FORMATS, Format, QuantSpec, decode, encode
from metis_compile.numerics.formats import block_shape

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


def _name(fmt: Format, block: str) -> str:
    """The format's, and of its block what differs from the default."""
    default, shape = block_shape(fmt.blocks[0]), block_shape(block)
    if shape is None or block == fmt.blocks[0]:
        return fmt.name if block == fmt.blocks[0] else f"{fmt.name}-{block}"
    size = "" if default is not None and default[1] == shape[1] else f"-{shape[1]}"
    return fmt.name + size + ("-2d" if shape[0] > 1 else "")


def _named() -> dict[str, str]:
    """Each format in its default block, and other blocks in the first format of as many codes a byte that has them."""
    found, seen = {}, set()
    for fmt in FORMATS.values():
        for block in fmt.blocks:
            spec = QuantSpec.make(fmt.name, block)
            if block == fmt.blocks[0] or (block, spec.element.codes_per_byte) not in seen:
                found[_name(fmt, block)] = str(spec)
            seen.add((block, spec.element.codes_per_byte))
    return found


SPECS = _named()
WITH_TEMPLATE = [name for name in SPECS if name != "ufp4"]  # no template takes float32 scales of 16 elements
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
