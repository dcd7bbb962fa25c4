"""Inductor's lowering of `metis::gemm`: the template that serves, and plain torch, for its autotuner to choose from.

What follows a product in the graph (a bias, an activation, a residual, a cast) Inductor puts into the template's store.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch

from metis_compile.compat import (
    ExternKernel,
    ExternKernelCaller,
    ExternKernelChoice,
    FixedLayout,
    TensorBox,
    add_feedback_saver,
    autotune,
    fallback_handler,
    graph_being_lowered,
    inductor_config,
    lowered_size_hint,
    register_lowering,
)
from metis_compile.kernels.capability import capability_of
from metis_compile.kernels.gemm.aten_fallback import grouped_product, product
from metis_compile.kernels.gemm.grouped_op import GROUPED_GEMM
from metis_compile.kernels.gemm.op import GEMM, MAX_TAILS
from metis_compile.kernels.gemm.operand import Operand, parse
from metis_compile.kernels.gemm.template_base import Config, constants
from metis_compile.numerics.swizzle import is_swizzled

log = logging.getLogger("metis_compile.kernels")

NAME = "metis_gemm"
TRIED = 4  # configurations that are timed where Inductor's max_autotune_gemm does not ask for all


@cache
def register_gemm() -> None:
    """Registers the lowering, once per process."""
    plain = ExternKernelChoice(product, name=NAME, has_out_variant=True)
    add_feedback_saver(_report)

    @register_lowering(GEMM, type_promotion_kind=None)
    def gemm(
        a: Sequence[TensorBox], a_spec: str, a_axis: int, a_length: Any, a_contract: int,
        b: Sequence[TensorBox], b_spec: str, b_axis: int, b_length: Any, b_contract: int,
        tails: Sequence[TensorBox],
    ) -> TensorBox:  # fmt: skip
        left, a_sizes = _operand(a, a_spec, a_axis, a_length, a_contract)
        right, b_sizes = _operand(b, b_spec, b_axis, b_length, b_contract)
        size = [*a_sizes[:-2], a_sizes[left.rows], b_sizes[right.rows]]
        capability = capability_of(a[0].get_device_or_error())
        inputs = [_as_bytes(i) if _needs_bytes(i.get_dtype(), capability) else i for i in (*a, *b, *tails)]
        for operand, scales in ((left, 1), (right, len(a) + 1)):
            if operand.swizzled:  # read without strides
                inputs[scales] = ExternKernel.require_contiguous(inputs[scales])
        nodes: list[Any] = [_buffer(i) for i in inputs]
        layout: Any = FixedLayout(nodes[0].get_device(), torch.float32, size)
        extern = plain.bind(nodes, layout, a=(a_spec, a_axis, a_contract), b=(b_spec, b_axis, b_contract))
        templates = _templates(nodes, layout, left, right, a_sizes[left.contracted], capability)
        return _choose(templates, extern, nodes, layout)

    plain_grouped = ExternKernelChoice(grouped_product, name=f"{NAME}_grouped", has_out_variant=True)

    @register_lowering(GROUPED_GEMM, type_promotion_kind=None)
    def grouped_gemm(
        a: Sequence[TensorBox], a_spec: str, a_axis: int, a_length: Any, a_contract: int,
        b: Sequence[TensorBox], b_spec: str, b_axis: int, b_length: Any, b_contract: int,
        offs: TensorBox,
    ) -> TensorBox:  # fmt: skip
        left, a_sizes = _operand(a, a_spec, a_axis, a_length, a_contract)
        right, b_sizes = _operand(b, b_spec, b_axis, b_length, b_contract)
        of_rows, groups = len(b_sizes) == 3, offs.get_size()[0]
        size = [*([] if of_rows else [groups]), a_sizes[left.rows], b_sizes[right.rows]]
        capability = capability_of(a[0].get_device_or_error())
        inputs = [_as_bytes(i) if _needs_bytes(i.get_dtype(), capability) else i for i in (*a, *b, offs)]
        nodes: list[Any] = [_buffer(i) for i in inputs]
        layout: Any = FixedLayout(nodes[0].get_device(), torch.float32, size)
        extern = plain_grouped.bind(nodes, layout, a=(a_spec, a_axis, a_contract), b=(b_spec, b_axis, b_contract))
        grouped, tokens = "rows" if of_rows else "k", a_sizes[left.rows if of_rows else left.contracted]
        templates = []
        if left.packed != "rows" or not of_rows:  # a tile of a group begins at any row, within a byte too
            k = a_sizes[left.contracted]
            templates = _templates(nodes, layout, left, right, k, capability, grouped=grouped, groups=groups)
        even = {len(nodes) - 1: partial(_even_groups, tokens=lowered_size_hint(tokens))}
        return _choose(templates, extern, nodes, layout, inputs=even)


def _even_groups(offs: Any, *, tokens: int) -> torch.Tensor:
    """Ends of groups of equal size, to time products with."""
    count = lowered_size_hint(offs.get_size()[0])
    sizes = torch.arange(1, count + 1, device=offs.get_device()) * tokens // count
    return sizes.to(offs.get_dtype())


def _operand(parts: Sequence[TensorBox], spec: str, axis: int, length: Any, contract: int) -> tuple[Operand, list[Any]]:
    """The operand, and the sizes of the tensor that it holds."""
    sizes = list(parts[0].get_size())
    sizes[axis] = length
    rank, parsed = len(sizes), parse(spec)
    swizzled = len(parts) > 1 and is_swizzled(parsed, rank, len(parts[1].get_size()))
    return Operand(spec=parsed, axis=axis % rank - rank, contracted=contract % rank - rank, swizzled=swizzled), sizes


def template_for(a: Operand, b: Operand, capability: int, grouped: str | None = None) -> Any:
    """The module of the best template that multiplies such operands on such a GPU, None where there is none.

    Groups of k may begin within a block, and within a byte, which only what decodes in registers can tell apart; those
    of rows within a tile of swizzled scales.
    """
    from metis_compile.kernels.gemm import block_scaled, emulated, fp8

    if grouped and (a.swizzled or b.swizzled):
        return None
    templates = (emulated,) if grouped == "k" else (block_scaled, fp8, emulated)
    return next((t for t in templates if t.supports(a, b, capability)), None)


def _templates(
    nodes: Sequence[Any],
    layout: Any,
    a: Operand,
    b: Operand,
    k: Any,
    capability: int,
    *,
    grouped: str | None = None,
    groups: Any = 0,
) -> list[Any]:
    """The choices of the template that multiplies such operands on this GPU. grouped, groups: see `constants`."""
    template = template_for(a, b, capability, grouped)
    tails = 0 if grouped else (len(nodes) - a.part_count - b.part_count) // 2
    sizevars = graph_being_lowered().sizevars
    if grouped and not isinstance(groups, int):
        groups = lowered_size_hint(groups) if groups.is_number else None
    if groups is None:
        return []
    if template is None or tails > MAX_TAILS or any(sizevars.statically_known_equals(s, 0) for s in (*layout.size, k)):
        return []
    choices: list[Any] = []
    m, n = map(lowered_size_hint, layout.size[-2:])
    if grouped == "rows":
        m = max(m // max(groups, 1), 1)
    for config in configs_for(template.configs(a, b, capability), m, n):
        numbers = constants(
            a, b, config,
            even_k=sizevars.statically_known_multiple_of(k, config.block_k),
            batched=len(layout.size) == 3 and not grouped,
            tails=tails,
            grouped=grouped,
            groups=groups,
        )  # fmt: skip
        for name, operand, part in (("A", a, nodes[1]), ("B", b, nodes[a.part_count + 1])):
            e4m3 = operand.scaled and part.get_dtype() == torch.float8_e4m3fn
            numbers[f"{name}_E4M3_SCALES"] = e4m3 and not operand.swizzled  # these are loaded as what they are
        template.TEMPLATE.maybe_append_choice(
            choices, input_nodes=nodes, layout=layout, **numbers, **template.extra_constants(a, b)
        )
    return choices


def configs_for(configs: Sequence[Config], m: int, n: int) -> Sequence[Config]:
    """Those of the configurations that are worth timing for a product of this size."""
    least_m, least_n = min(c.block_m for c in configs), min(c.block_n for c in configs)
    fitting = [c for c in configs if c.block_m < 2 * max(m, least_m) and c.block_n < 2 * max(n, least_n)]
    return fitting if inductor_config.max_autotune_gemm or inductor_config.max_autotune else fitting[:TRIED]


def _needs_bytes(dtype: torch.dtype, capability: int) -> bool:
    """Whether Triton has no pointer to it: to E8M0 nowhere, to E4M3 only where there are instructions for it."""
    return dtype == torch.float8_e8m0fnu or (dtype == torch.float8_e4m3fn and capability < 89)


def _as_bytes(x: TensorBox) -> Any:
    """A view of the bytes, by a call in Inductor's wrapper code: a kernel is told a buffer's own dtype.

    For all choices: what the autotuner times them with has the dtypes of one list of nodes.
    """
    x.realize()
    return fallback_handler(torch.ops.aten.view.dtype)(x, torch.uint8)


def _buffer(x: TensorBox) -> Any:
    """The buffer that holds it, which may have to be written; the next product that takes it takes the same."""
    buffer = ExternKernel.realize_input(x)
    if isinstance(buffer, TensorBox):  # a copy, of what was a view of no buffer: FP8 as its bytes
        x.data = buffer.data
    return buffer


def _choose(templates: list[Any], extern: Any, nodes: Sequence[Any], layout: Any, **how: Any) -> TensorBox:
    """how: for `autotune`."""
    try:
        return autotune(NAME, [*templates, extern], nodes, layout, **how)
    except Exception as error:
        if not templates:
            raise
        _warn_once(f"{type(error).__name__}: {error}")
        return extern.output_node()


def _report(timings: dict[Any, float], name: str, *_: Any) -> None:
    """Inductor's autotuner is done: says so where no template worked."""
    templates = [time for choice, time in timings.items() if not isinstance(choice, ExternKernelCaller)]
    if name == NAME and not any(map(math.isfinite, templates)):
        _warn_once("none of them compiled and ran")


def _warn_once(reason: str) -> None:
    """Warns of the first reason in this process; others are for who debugs."""
    level = logging.DEBUG if _reasons() else logging.WARNING
    _reasons().append(reason)
    log.log(level, "metis: the Triton templates of packed products don't work here, plain torch multiplies: %s", reason)


@cache
def _reasons() -> list[str]:
    """What was warned of, and would have been."""
    return []
