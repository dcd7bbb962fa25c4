"""Inductor's lowering of the CPU operators: calls of `launch`, into buffers that Inductor plans and reuses.

As fallbacks the operators would allocate each output: pages that the system must clear first, at a cost like the
kernel's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from metis_compile.compat import (
    ExternKernel,
    ExternKernelOut,
    FixedLayout,
    TensorBox,
    fallback_handler,
    graph_being_lowered,
    register_lowering,
)
from metis_compile.kernels.cpu.ops import (
    CPU_CAST,
    CPU_CAT,
    CPU_DECODE,
    CPU_GROUPED,
    CPU_PRODUCT,
    CPU_THIN_SUM,
    CPU_VALUES,
)
from metis_compile.numerics.blocks import normalize_axis

_IMPORT = "from metis_compile.kernels.cpu import launch as metis_cpu"


class _Call(ExternKernelOut):
    """A call of one of the functions of `launch`, in Inductor's wrapper code."""

    def codegen(self, wrapper: Any) -> None:
        wrapper.add_import_once(_IMPORT)
        super().codegen(wrapper)


@cache
def register_cpu_lowerings() -> None:
    """Registers the lowerings, once per process."""

    @register_lowering(CPU_VALUES, type_promotion_kind=None)
    def values(x: TensorBox, given: list[TensorBox], spec: str, axis: int, stream: int, exact: bool) -> TensorBox:
        if graph_being_lowered().cpp_wrapper:
            return fallback_handler(CPU_VALUES)(x, given, spec, axis, stream, exact)
        return _call("values", [x, *given], x.get_size(), _dtype(exact), spec=spec, axis=axis, stream=stream)

    @register_lowering(CPU_DECODE, type_promotion_kind=None)
    def decode(parts: list[TensorBox], spec: str, axis: int, length: Any, exact: bool) -> TensorBox:
        if graph_being_lowered().cpp_wrapper:
            return fallback_handler(CPU_DECODE)(parts, spec, axis, length, exact)
        size = list(parts[0].get_size())
        size[normalize_axis(axis, len(size))] = length
        return _call("decode", parts, size, _dtype(exact), spec=spec, axis=axis)

    @register_lowering(CPU_THIN_SUM, type_promotion_kind=None)
    def thin_sum(x: TensorBox, left: TensorBox, right: TensorBox, scale: float) -> TensorBox:
        if graph_being_lowered().cpp_wrapper:
            return fallback_handler(CPU_THIN_SUM)(x, left, right, scale)
        return _call("thin_sum", [x, left, right], x.get_size(), torch.float32, scale=scale)

    @register_lowering(CPU_PRODUCT, type_promotion_kind=None)
    def product(
        a: TensorBox,
        b: TensorBox,
        decs: list[TensorBox],
        tails: list[TensorBox],
        bias: TensorBox | None = None,
        added: TensorBox | None = None,
        scale: float = 1.0,
    ) -> TensorBox:
        if graph_being_lowered().cpp_wrapper:
            return fallback_handler(CPU_PRODUCT)(a, b, decs, tails, bias, added, scale)
        size = [*a.get_size()[:-1], b.get_size()[-1]]
        given = [*decs, *tails, *(t for t in (bias, added) if t is not None)]
        more: dict[str, Any] = {} if bias is None else {"biased": True}
        more |= {} if added is None else {"accumulates": True}
        more |= {} if scale == 1 else {"scale": scale}
        return _call("product", [a, b, *given], size, torch.float32, tails=len(tails) // 2, **more)

    @register_lowering(CPU_GROUPED, type_promotion_kind=None)
    def grouped(a: TensorBox, b: TensorBox, offs: TensorBox, decs: list[TensorBox]) -> TensorBox:
        if graph_being_lowered().cpp_wrapper:
            return fallback_handler(CPU_GROUPED)(a, b, offs, decs)
        rows = a.get_size()[0]
        size = [rows] if len(b.get_size()) == 3 else [offs.get_size()[0], rows]
        return _call("grouped", [a, b, offs, *decs], [*size, b.get_size()[-1]], torch.float32)

    @register_lowering(CPU_CAST, type_promotion_kind=None)
    def cast(x: TensorBox, dtype: torch.dtype) -> TensorBox:
        if graph_being_lowered().cpp_wrapper:
            return fallback_handler(CPU_CAST)(x, dtype)
        return _call("cast", [x], x.get_size(), dtype)

    @register_lowering(CPU_CAT, type_promotion_kind=None)
    def cat(parts: list[TensorBox], dim: int) -> TensorBox:
        if graph_being_lowered().cpp_wrapper:
            return fallback_handler(CPU_CAT)(parts, dim)
        size = list(parts[0].get_size())
        size[dim] = sum(part.get_size()[dim] for part in parts)
        return _call("cat", parts, size, parts[0].get_dtype(), dim=dim)


def _dtype(exact: bool) -> torch.dtype:
    return torch.bfloat16 if exact else torch.float32


def _call(
    function: str, inputs: Sequence[TensorBox], size: Sequence[Any], dtype: torch.dtype, **given: Any
) -> TensorBox:
    layout = FixedLayout(torch.device("cpu"), dtype, list(size))
    realized = [ExternKernel.realize_input(i) for i in inputs]
    return TensorBox.create(
        _Call(layout=layout, inputs=realized, kwargs=given, python_kernel_name=f"metis_cpu.{function}")
    )
