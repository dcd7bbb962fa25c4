"""Statistics of one operand of a product: its size, and what quantizing it loses.

With x the operand, s what the quantizer gets of it (the residual of a split, transformed where there is a Hadamard
transform; x itself where there is neither) and q what it gives:

    amax          max |x|
    underflow     of the elements of s that are not zero, the share that is zero in q
    saturation    of the elements of s, the share beyond the largest magnitude that its block's scale can hold
    error         || q - s || / || x ||
    split_energy  1 - || s ||^2 / || x ||^2, the share that a split took; None where there is none
    mean_share    rows || mean over rows of x ||^2 / || x ||^2, the share that is in the mean over tokens (of a
                  weight, over its output features)
    scale_spread  log2 of the largest block scale over the smallest, of blocks that are not all zeros; None of one
                  scale for a tensor

All but amax are of some vectors of the operand (`sampling`), all of it where it has no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.blocks import BlockLayout
from metis_compile.numerics.quantize import magnitude_limits, scale_values
from metis_compile.statistics.quantized import parts_of, values_of
from metis_compile.statistics.sampling import as_matrix, vector_numbers
from metis_compile.statistics.what_if import format_specs

__all__ = ["FIELDS", "VECTORS", "operand_statistics"]

VECTORS = 64  # of an operand that are looked at, unless said otherwise
QUANTIZATION = ("underflow", "saturation", "error", "scale_spread")  # what depends on the format
FIELDS = ("amax", *QUANTIZATION, "split_energy", "mean_share")
_ROUNDING = 1 + 1e-6  # of a scale in float32: an element that it maps to the largest value has not saturated


def operand_statistics(
    x: Tensor,
    spec: QuantSpec,
    axis: int = -1,
    *,
    quantized: Tensor | None = None,
    is_split: bool = False,
    seed: Tensor | None = None,
    stream: int = 0,
    vectors: int | None = VECTORS,
    what_if: Sequence[str] | Mapping[str, QuantSpec] = (),
    cpu_kernels: bool = False,
) -> dict[str, Any]:
    """FIELDS of one operand under one spec, each a float32 tensor of no dimensions on x's device, or None.

    x: the operand, floating-point, two dimensions or more. axis: that which the product contracts. quantized: what the
    quantizer gets, where it is not x: the residual of a split (is_split), or its Hadamard transform; x's shape, but for
    what the transform fills up. seed, stream: for rounding at random, as `metis::quantize` takes them; without a seed
    it is 0. vectors: about how many along `axis` are looked at, None for all. what_if: other formats, by
    `format_specs`, that the same vectors of `quantized` are put into: "what_if" then holds the fields that depend on
    the format by name. cpu_kernels: as in `parts_of`.

    Raises ValueError for a block that does not fit and an unknown format, IndexError for an axis out of range.
    """
    x = x.detach()
    given = x if quantized is None else quantized.detach()
    whole, axis_of = as_matrix(given, spec, axis)
    numbers = vector_numbers(whole, spec, axis_of, vectors)
    source = whole if numbers is None else whole.index_select(1 - axis_of, numbers)
    source = source.to(torch.float32)
    if quantized is None:
        operand = source
    else:
        operand, _ = as_matrix(x, spec, axis)
        operand = (operand if numbers is None else operand.index_select(1 - axis_of, numbers)).to(torch.float32)
    energy = _energy(operand)
    if spec.needs_noise and seed is None:
        seed = torch.zeros(1, dtype=torch.int64, device=x.device)
    found: dict[str, Any] = {"amax": _amax(x)}
    found |= _quantization(source, spec, axis_of, energy, seed, stream, cpu_kernels)
    found["split_energy"] = 1 - _share(_energy(source), energy) if is_split else None
    found["mean_share"] = _mean_share(operand, energy) if x.dim() == 2 else None
    others = what_if if isinstance(what_if, Mapping) else format_specs(what_if)
    if others:
        found["what_if"] = {
            name: _quantization(source, other, axis_of, energy, seed, stream, cpu_kernels)
            for name, other in others.items()
        }
    return found


def _quantization(
    source: Tensor,
    spec: QuantSpec,
    axis: int,
    energy: Tensor,
    seed: Tensor | None,
    stream: int,
    cpu_kernels: bool,
) -> dict[str, Any]:
    if spec.needs_noise and seed is None:
        seed = torch.zeros(1, dtype=torch.int64, device=source.device)
    parts = parts_of(source, spec, axis, seed, stream, cpu_kernels=cpu_kernels)
    length = source.shape[axis]
    values = values_of(parts, spec, axis, length, cpu_kernels=cpu_kernels)
    nonzero = torch.count_nonzero(source)
    limits = magnitude_limits(parts, spec, axis, length)
    layout = BlockLayout.of(spec, source.dim(), axis)
    beyond = torch.count_nonzero(source.abs() > limits * _ROUNDING)
    return {
        "underflow": _share(nonzero - torch.count_nonzero(values), nonzero),
        "saturation": beyond / max(source.numel(), 1),
        "error": _share(_energy(values - source), energy).sqrt(),
        "scale_spread": None if spec.block == "tensor" else _spread(scale_values(parts, spec), layout.amax(source)),
    }


def _amax(x: Tensor) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros((), dtype=torch.float32)
    least, largest = torch.aminmax(x)
    return torch.maximum(-least, largest).to(torch.float32)


def _energy(x: Tensor) -> Tensor:
    """The sum of squares, in float64: of gradients it may be too small for float32."""
    return torch.linalg.vector_norm(x, dtype=torch.float64).square()


def _mean_share(x: Tensor, energy: Tensor) -> Tensor:
    return _share(x.shape[0] * _energy(x.mean(0)), energy) if x.shape[0] else energy.to(torch.float32)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole as float32, 0 of nothing."""
    return torch.where(whole == 0, 0.0, part / whole).to(torch.float32)


def _spread(scales: Tensor, amax: Tensor) -> Tensor:
    """log2 of the largest scale over the smallest, of blocks that are not all zeros (amax); 0 where there are none."""
    if scales.numel() == 0:
        return scales.new_zeros(())
    counts = (amax > 0) & (scales > 0) & torch.isfinite(scales)
    least = torch.amin(torch.where(counts, scales, torch.inf))
    largest = torch.amax(torch.where(counts, scales, 0.0))
    return torch.where(torch.isfinite(least), torch.log2(largest) - torch.log2(least), 0.0)
