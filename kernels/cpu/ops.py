"""Quantization on the CPU as two operators over C++ kernels, byte for byte what `metis_compile.numerics` defines.

`metis::cpu_quantize(x, spec, axis, seed, stream, values, parts) -> Tensor[]`: the values of `fake_quantize` (float32)
where `values`, then the parts of `encode` where `parts`. `metis::cpu_decode(parts, spec, axis, length) -> Tensor`.
Outputs are contiguous and alias nothing. Defined on `torch.library.Library`, whose calls cost less than custom_op's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from metis_compile.kernels.cpu.compile import INPUTS, load
from metis_compile.numerics import QuantSpec, encode, fake_quantize, uniform_noise
from metis_compile.numerics.blocks import BlockLayout, normalize_axis

__all__ = ["CPU_DECODE", "CPU_QUANTIZE", "cpu_decode", "cpu_quantize"]

_FULL = 1  # the kind of values: float32
_library = torch.library.Library("metis", "FRAGMENT")
_tags = (torch.Tag.needs_contiguous_strides, torch.Tag.pt2_compliant_tag)
_library.define(
    "cpu_quantize(Tensor x, str spec, int axis, Tensor? seed, int stream, bool values, bool parts) -> Tensor[]",
    tags=_tags,
)
_library.define("cpu_decode(Tensor[] parts, str spec, int axis, SymInt length) -> Tensor", tags=_tags)

_parse = cache(QuantSpec.parse)


def cpu_quantize(
    x: Tensor, spec: str, axis: int, seed: Tensor | None, stream: int, values: bool, parts: bool
) -> list[Tensor]:
    """[values] where `values`, then the parts where `parts`; x is float32, bfloat16 or float16, of any strides.

    seed, stream: of stochastic rounding, see `metis_compile.numerics.uniform_noise`. Raises KernelBuildError where the
    C++ compiler fails, and what `metis_compile.numerics.encode` raises.
    """
    parsed = _parse(spec)
    if (seed is not None) != parsed.stochastic:
        raise ValueError(f"a seed must be given for stochastic rounding and for no other, got {seed} for {spec!r}")
    if x.dtype not in INPUTS:
        raise TypeError(f"x must be float32, bfloat16 or float16, got {x.dtype}")
    if x.numel() == 0:
        return _of_nothing(x, parsed, axis, seed, values, parts)
    x = x.contiguous()
    results = _outputs(x, parsed, axis, values, parts)
    pointers = [t.data_ptr() for t in results]
    value = pointers.pop(0) if values else None
    codes, block_scales, tensor_scale = _three(parsed, pointers) if parts else (None, None, None)
    outer, n, inner, pack_rows = _dimensions(parsed, x.shape, axis)
    kernel = load("quantize", parsed, x.dtype)
    kernel(
        x.data_ptr(), outer, n, inner, pack_rows, _FULL if values else 0, value, codes, block_scales, tensor_scale,
        None if seed is None else seed.data_ptr(), stream, torch.get_num_threads(),
    )  # fmt: skip
    return results


def cpu_decode(parts: list[Tensor], spec: str, axis: int, length: int) -> Tensor:
    """The float32 values that `parts` hold, `length` of them along `axis`."""
    parsed = _parse(spec)
    parts = [part.contiguous() for part in parts]
    result = _decoded(parts, parsed, axis, length)
    if result.numel() > 0:
        codes, block_scales, tensor_scale = _three(parsed, [part.data_ptr() for part in parts])
        kernel = load("decode", parsed, torch.float32)
        kernel(
            codes, tensor_scale if block_scales is None else block_scales, tensor_scale,
            *_dimensions(parsed, result.shape, axis), _FULL, result.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    return result


def _outputs(x: Tensor, spec: QuantSpec, axis: int, values: bool, parts: bool) -> list[Tensor]:
    """Unwritten tensors for the results."""
    results = [x.new_empty(x.shape, dtype=torch.float32)] if values else []
    if parts:
        codes, scales = part_shapes(spec, x.shape, axis)
        results.append(x.new_empty(codes, dtype=torch.uint8))
        results.append(x.new_empty(scales, dtype=spec.fmt.scale_dtype))
        if spec.fmt.tensor_scale:
            results.append(x.new_empty((), dtype=torch.float32))
    return results


def part_shapes(spec: QuantSpec, shape: Sequence[Any], axis: int) -> tuple[list[Any], list[Any]]:
    """The shapes of the codes and of the scales behind them, of which an fp8 "tensor" has one."""
    layout = BlockLayout.of(spec, len(shape), axis)
    codes, scales = list(shape), list(shape)
    if spec.element.bits == 4:
        codes[layout.axis] = (shape[layout.axis] + 1) // 2
    for dim, size in layout.tiles:
        scales[dim] = (shape[dim] + size - 1) // size
    if layout.row:
        scales[layout.axis] = 1
    return codes, [] if layout.tensor else scales


def _decoded(parts: Sequence[Tensor], spec: QuantSpec, axis: int, length: Any) -> Tensor:
    shape = list(parts[0].shape)
    shape[normalize_axis(axis, len(shape))] = length
    return parts[0].new_empty(shape, dtype=torch.float32)


def _three(spec: QuantSpec, parts: list[int]) -> tuple[int, int | None, int | None]:
    """(codes, block scales, tensor scale), None for what the format has not."""
    if len(parts) == 3:
        return parts[0], parts[1], parts[2]
    return (parts[0], None, parts[1]) if spec.block == "tensor" else (parts[0], parts[1], None)


def _dimensions(spec: QuantSpec, shape: Sequence[int], axis: int) -> tuple[int, int, int, bool]:
    """[outer, n, inner] of a contiguous tensor, and whether codes are packed along n where blocks are square."""
    layout = BlockLayout.of(spec, len(shape), axis)
    if len(layout.tiles) == 2:
        return prod(shape[:-2]), shape[-2], shape[-1], layout.axis == len(shape) - 2
    return prod(shape[: layout.axis]), shape[layout.axis], prod(shape[layout.axis + 1 :]), False


def _of_nothing(x: Tensor, spec: QuantSpec, axis: int, seed: Tensor | None, values: bool, parts: bool) -> list[Tensor]:
    noise = None if seed is None else uniform_noise(seed, 0, x.shape)
    results = [fake_quantize(x, spec, axis, noise)] if values else []
    results += encode(x, spec, axis, noise) if parts else []
    return [result.clone(memory_format=torch.contiguous_format) for result in results]


_library.impl("cpu_quantize", cpu_quantize, "CPU")
_library.impl("cpu_decode", cpu_decode, "CPU")


@torch.library.register_fake("metis::cpu_quantize", lib=_library)
def _(x: Tensor, spec: str, axis: int, seed: Tensor | None, stream: int, values: bool, parts: bool) -> list[Tensor]:
    return _outputs(x, _parse(spec), axis, values, parts)


@torch.library.register_fake("metis::cpu_decode", lib=_library)
def _(parts: list[Tensor], spec: str, axis: int, length: int) -> Tensor:
    return _decoded(parts, _parse(spec), axis, length)


CPU_QUANTIZE = torch.ops.metis.cpu_quantize.default
CPU_DECODE = torch.ops.metis.cpu_decode.default
