"""Blocks as dimensions: a blocked dimension n is seen as (n / size, size).

Where n is not known to be a multiple of the block size, the last block is short: elements stay where they are, and
what belongs to their block is fetched for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.numerics.formats import QuantSpec


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """How the blocks of one spec lie in a tensor of some number of dimensions."""

    axis: int  # never negative: the contraction axis, along which E2M1 codes are packed
    tiles: tuple[tuple[int, int], ...] = ()  # (dimension, block size), ascending; else one of the next two holds
    row: bool = False  # a block is all of `axis`
    tensor: bool = False  # a block is everything

    @classmethod
    def of(cls, spec: QuantSpec, ndim: int, axis: int) -> BlockLayout:
        """Raises IndexError for an axis out of range, ValueError where a 2-D block does not fit."""
        axis = normalize_axis(axis, ndim)
        if spec.block in ("row", "tensor"):
            return cls(axis=axis, row=spec.block == "row", tensor=spec.block == "tensor")
        shape = spec.block_shape
        assert shape is not None
        rows, columns = shape
        if rows == 1:
            return cls(axis=axis, tiles=((axis, columns),))
        if ndim < 2 or axis < ndim - 2:
            raise ValueError(
                f"axis must be one of the last two dimensions for {spec.block} blocks, which tile these, "
                f"got axis {axis} of {ndim} dimension{'s' if ndim != 1 else ''}"
            )
        return cls(axis=axis, tiles=((ndim - 2, rows), (ndim - 1, columns)))

    def amax(self, x: Tensor) -> Tensor:
        """The largest magnitude of each block, 0 of no elements: in the shape in which scales are stored."""
        if statically_known_true(x.numel() == 0):
            return x.new_zeros(self.scales_shape(x.shape))
        magnitude = torch.abs(x)
        if self.tensor:
            return torch.amax(magnitude)
        if self.row:
            return torch.amax(magnitude, dim=self.axis, keepdim=True)
        return torch.amax(self._padded_split(magnitude), dim=self._within)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over each block of a tiled layout, in the shape in which scales are stored."""
        if statically_known_true(x.numel() == 0):
            return x.new_zeros(self.scales_shape(x.shape))
        return torch.sum(self._padded_split(x), dim=self._within)

    @property
    def _within(self) -> list[int]:
        """The dimensions, after splitting all tiles, that run inside of a block."""
        return [dim + i + 1 for i, (dim, _) in enumerate(self.tiles)]

    def _padded_split(self, x: Tensor) -> Tensor:
        for dim, size in reversed(self.tiles):
            x = pad_to_multiple(x, dim, size)
            x = x.unflatten(dim, (x.shape[dim] // size, size))
        return x

    def split(self, x: Tensor) -> Tensor:
        """x with every tiled dimension that is a multiple of its block size replaced by (n / size, size)."""
        for dim, size in reversed(self.tiles):
            if _divides(size, x.shape[dim]):
                x = x.unflatten(dim, (x.shape[dim] // size, size))
        return x

    def join(self, blocks: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of :meth:`split` for a tensor of this shape."""
        for dim, size in self.tiles:
            if _divides(size, shape[dim]):
                blocks = blocks.flatten(dim, dim + 1)
        return blocks

    def spread(self, per_block: Tensor, shape: Sequence[int]) -> Tensor:
        """Values per block, as what broadcasts over a split tensor of this shape."""
        added = 0
        for dim, size in self.tiles:
            if _divides(size, shape[dim]):
                added += 1
                per_block = per_block.unsqueeze(dim + added)
            else:
                # The shift matters: of `// size`, Inductor's C++ makes a loop over blocks that leaves out a short
                # last one (2.13, CppScheduling.try_loop_split).
                block = torch.arange(shape[dim], device=per_block.device) >> (size.bit_length() - 1)
                per_block = per_block.index_select(dim + added, block)
        return per_block

    def scales_shape(self, shape: Sequence[int]) -> list[int]:
        """The shape in which the scales of a tensor of this shape are stored."""
        if self.tensor:
            return []
        stored = list(shape)
        if self.row:
            stored[self.axis] = 1
        for dim, size in self.tiles:
            stored[dim] = (shape[dim] + size - 1) // size
        return stored


def normalize_axis(axis: int, ndim: int) -> int:
    """`axis` in range(ndim). Raises IndexError when it is out of range."""
    if ndim == 0:
        raise IndexError(f"x must have at least one dimension to have axis {axis}, got none")
    if not -ndim <= axis < ndim:
        raise IndexError(f"axis must be between {-ndim} and {ndim - 1} for {ndim} dimensions, got {axis}")
    return axis % ndim


def pad_to_multiple(x: Tensor, dim: int, size: int) -> Tensor:
    """x with zeros behind its last element along `dim`, up to a multiple of `size`."""
    length = x.shape[dim]
    if _divides(size, length):
        return x
    blocks = (length + size - 1) // size
    return torch.nn.functional.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, blocks * size - length])


def take_first(x: Tensor, dim: int, length: int) -> Tensor:
    """A copy of the first `length` of x along `dim`.

    Not a slice: asking whether a slice of symbolic length is contiguous puts a guard on the length. Inductor
    turns the index, an arange, into plain addressing.
    """
    return x.index_select(dim, torch.arange(length, device=x.device))


def anchor_of_sums(bits: int, spec: QuantSpec) -> float:
    """What rounds a number of fp32 to a multiple of 2^-bits, where it is added and taken away again.

    bits: for blocks of 16 elements. Larger ones have one less for each factor of 2, so that sums over them stay exact.
    """
    assert spec.block_shape is not None
    return 2.0 ** (23 - bits + prod(spec.block_shape).bit_length() - 5)


def _divides(size: int, length: int) -> bool:
    """Whether `length`, which may be symbolic, is known to be a multiple of `size`; puts no guard on it."""
    return statically_known_true(length % size == 0)
