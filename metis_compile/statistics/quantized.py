"""Codes and values of a tensor by the quickest way there is to the same bytes: the C++ kernels on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metis_compile.kernels.cpu.compile import INPUTS
from metis_compile.kernels.cpu.ops import CPU_DECODE, CPU_PARTS, CPU_TENSOR_SCALE
from metis_compile.kernels.parts import tensor_target
from metis_compile.numerics import QuantSpec, decode, encode
from metis_compile.ops.quantization import noise_of

__all__ = ["parts_of", "values_of"]


def parts_of(
    x: Tensor,
    spec: QuantSpec,
    axis: int,
    seed: Tensor | None = None,
    stream: int = 0,
    *,
    amax: Tensor | None = None,
    cpu_kernels: bool = False,
) -> list[Tensor]:
    """What `metis_compile.numerics.encode` gives, noise drawn from `seed` and `stream` as in a compiled graph.

    amax: what the scale of the tensor is made of; None: its own.
    cpu_kernels: whether what lies on the CPU goes to the C++ kernels, which a compiler makes on first use.
    """
    if not (cpu_kernels and x.device.type == "cpu" and x.dtype in INPUTS):
        return encode(x, spec, axis, noise_of(x, spec, axis, seed if spec.needs_noise else None, stream), amax)
    x, target = x.contiguous(), tensor_target(spec)
    scales = [] if target is None else list(CPU_TENSOR_SCALE(x if amax is None else amax, target))
    given = [*scales, seed] if spec.needs_noise else scales
    return [*CPU_PARTS(x, given, str(spec), axis, stream), *scales[1:]]


def values_of(parts: Sequence[Tensor], spec: QuantSpec, axis: int, length: int, *, cpu_kernels: bool = False) -> Tensor:
    """What `metis_compile.numerics.decode` gives, float32. length: of the tensor along `axis`."""
    if not (cpu_kernels and all(part.device.type == "cpu" for part in parts)):
        return decode(parts, spec, axis, length)
    values: Tensor = CPU_DECODE(list(parts), str(spec), axis, length, False)
    return values
