"""Blocks as dimensions: a blocked dimension n becomes (ceil(n / size), size), zero-padded at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.numerics.formats import QuantSpec


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """How the blocks of one spec lie in a tensor of ``ndim`` dimensions."""

    ndim: int
    axis: int  # in range(ndim): the contraction axis, along which E2M1 codes are packed
    tiles: tuple[tuple[int, int], ...]  # (dimension, block size), ascending; empty for "row" and "tensor"
    whole: tuple[int, ...]  # dimensions that one block covers whole
    scalar: bool = False  # one scale for everything, stored with 0 dimensions

    @classmethod
    def of(cls, spec: QuantSpec, ndim: int, axis: int) -> BlockLayout:
        """Raises IndexError for an axis out of range, ValueError where a 2-D block does not fit."""
        axis = normalize_axis(axis, ndim)
        if spec.block == "tensor":
            return cls(ndim=ndim, axis=axis, tiles=(), whole=tuple(range(ndim)), scalar=True)
        if spec.block == "row":
            return cls(ndim=ndim, axis=axis, tiles=(), whole=(axis,))
        rows, columns = map(int, spec.block.split("x"))
        if rows == 1:
            return cls(ndim=ndim, axis=axis, tiles=((axis, columns),), whole=())
        if ndim < 2 or axis < ndim - 2:
            raise ValueError(
                f"axis must be one of the last two dimensions for {spec.block} blocks, which tile these, "
                f"got axis {axis} of {ndim} dimension{'s' if ndim != 1 else ''}"
            )
        return cls(ndim=ndim, axis=axis, tiles=((ndim - 2, rows), (ndim - 1, columns)), whole=())

    @property
    def within(self) -> tuple[int, ...]:
        """The dimensions of a split tensor that run inside a block."""
        return tuple(dim + i + 1 for i, (dim, _) in enumerate(self.tiles)) or self.whole

    def split(self, x: Tensor) -> Tensor:
        """x with every tiled dimension n replaced by (ceil(n / size), size)."""
        for dim, size in reversed(self.tiles):
            x = pad_to_multiple(x, dim, size)
            x = x.unflatten(dim, (x.shape[dim] // size, size))
        return x

    def join(self, blocks: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of :meth:`split` for a tensor of this shape."""
        for dim, size in self.tiles:
            blocks = blocks.flatten(dim, dim + 1)
            if not statically_known_true(shape[dim] % size == 0):
                blocks = take_first(blocks, dim, shape[dim])
        return blocks

    def amax(self, blocks: Tensor) -> Tensor:
        """Largest magnitude of each block of a split tensor, keeping dimensions of 1; 0 of no elements."""
        if any(statically_known_true(blocks.shape[dim] == 0) for dim in self.within):
            kept = [1 if dim in self.within else n for dim, n in enumerate(blocks.shape)]
            return blocks.new_zeros(kept)
        return torch.amax(torch.abs(blocks), dim=self.within, keepdim=True)

    def store(self, per_block: Tensor) -> Tensor:
        """Per-block values of a split tensor in the shape they are stored in."""
        if self.tiles:
            return per_block.squeeze(self.within)
        return per_block.reshape(()) if self.scalar else per_block

    def load(self, stored: Tensor) -> Tensor:
        """The inverse of :meth:`store`, up to what broadcasts."""
        for dim in self.within if self.tiles else ():
            stored = stored.unsqueeze(dim)
        return stored


def normalize_axis(axis: int, ndim: int) -> int:
    """``axis`` in range(ndim). Raises IndexError when it is out of range."""
    if ndim == 0:
        raise IndexError(f"x must have at least one dimension to have axis {axis}, got none")
    if not -ndim <= axis < ndim:
        raise IndexError(f"axis must be between {-ndim} and {ndim - 1} for {ndim} dimensions, got {axis}")
    return axis % ndim


def take_first(x: Tensor, dim: int, length: int) -> Tensor:
    """A copy of the first ``length`` of x along ``dim``.

    Not a slice: asking whether a slice of symbolic length is contiguous puts a guard on the length. Inductor
    turns the index, an arange, into plain addressing.
    """
    return x.index_select(dim, torch.arange(length, device=x.device))


def pad_to_multiple(x: Tensor, dim: int, size: int) -> Tensor:
    """x with zeros behind its last element along ``dim``, up to a multiple of ``size``."""
    length = x.shape[dim]
    if statically_known_true(length % size == 0):
        return x
    blocks = (length + size - 1) // size
    return torch.nn.functional.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, blocks * size - length])
