"""Give quantizations on CUDA to the Triton kernel that reads a tensor once for blocks along its rows and its columns.

NVFP4's tensor scale comes from the largest magnitude of the whole tensor, which has to be known before the first block
is rounded: a reduction that Inductor fuses with what makes the tensor, where it can. Where a row (the mean of a split)
is subtracted from every row first, the residual is never stored: the kernel subtracts, and

    max |x - mu| = max over columns of max(|max x - mu|, |min x - mu|)

which is exact, since rounding keeps order, and comes from the same pass over the tensor as the mean itself.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.compat import lowers_to_triton
from metis_compile.kernels.quantize.ops import QUANTIZE_TILES
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.blocks import normalize_axis
from metis_compile.numerics.formats import BLOCK_ELEMENTS
from metis_compile.passes.emit import Emitter
from metis_compile.passes.trace import Tracer

aten, prims = torch.ops.aten, torch.ops.prims
INPUTS = (torch.float32, torch.bfloat16, torch.float16)


class Source(NamedTuple):
    """What is quantized: x, or x - mean."""

    x: fx.Node
    mean: fx.Node | None  # as many elements as x has columns, float32


def quantize_in_tiles(emitter: Emitter, tracer: Tracer, nodes: Sequence[fx.Node]) -> int:
    """Replaces those of the metis.quantize `nodes` that the kernel takes; returns how many calls take their place."""
    groups: dict[Any, list[fx.Node]] = {}
    for node in nodes:
        x: Any = node.args[0]
        spec, value = QuantSpec.parse(str(node.args[1])), x.meta["val"]
        if not lowers_to_triton(value.device) or value.dtype not in INPUTS or spec.block not in BLOCK_ELEMENTS:
            continue
        axis = normalize_axis(node.args[2], value.dim())  # type: ignore[arg-type]
        pairs = axis >= value.dim() - 2 and not spec.orientation_free
        groups.setdefault((x, str(spec), None if pairs else node, node.args[3:4]), []).append(node)
    amaxes: dict[Source, fx.Node] = {}
    for group in groups.values():
        _call(emitter, tracer, group, amaxes)
    return len(groups)


def _call(emitter: Emitter, tracer: Tracer, group: list[fx.Node], amaxes: dict[Source, fx.Node]) -> None:
    """One call for `group`: quantizations of one tensor by one spec along different axes."""
    first = group[0]
    source = source_of(first.args[0])  # type: ignore[arg-type]
    spec = QuantSpec.parse(str(first.args[1]))
    seed = first.args[3] if spec.needs_noise else None
    axes = [node.args[2] for node in group]
    streams = [(*node.args[3:], None, 0)[1] for node in group]
    with emitter.at(first, like=first):
        amax = None
        if spec.fmt.tensor_scale:
            if source not in amaxes:
                amaxes[source] = _amax(tracer, source)
            amax = amaxes[source]
        args = (source.x, source.mean, amax, seed, str(spec), axes, streams)
        made = emitter.call(QUANTIZE_TILES, args, name=f"{first.name}_tiles")
        results = [emitter.call(operator.getitem, (made, i)) for i in range(len(made.meta["val"]))]
    for i, node in enumerate(group):
        parts = [*results[2 * i : 2 * i + 2], *results[2 * len(group) :]]
        for user in list(node.users):
            user.replace_all_uses_with(parts[user.args[1]])  # type: ignore[index]


def source_of(x: fx.Node) -> Source:
    """x as it lies in memory, and what is subtracted from each of its rows."""
    if x.target is not aten.sub.Tensor or x.kwargs or x.meta["val"].dtype != torch.float32:
        return Source(x, None)
    base, mean = (node if isinstance(node, fx.Node) else None for node in x.args)
    if (
        base is None
        or mean is None
        or not _is_row_of(mean, x)
        or not _same(base.meta["val"].shape, x.meta["val"].shape)
    ):
        return Source(x, None)
    if base.target is prims.convert_element_type.default:
        base = base.args[0]  # type: ignore[assignment]
    assert isinstance(base, fx.Node)
    return Source(base, mean) if base.meta["val"].dtype in INPUTS else Source(x, None)


def _is_row_of(row: fx.Node, x: fx.Node) -> bool:
    value, width = row.meta["val"], x.meta["val"].shape[-1]
    ones = [1] * (value.dim() - 1)
    return value.dtype == torch.float32 and value.dim() > 0 and _same(value.shape, [*ones, width])


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal; puts no guard on a symbolic size."""
    return len(a) == len(b) and all(statically_known_true(m == n) for m, n in zip(a, b, strict=True))


def _amax(tracer: Tracer, source: Source) -> fx.Node:
    """The largest magnitude of what is quantized, 0-dim float32: NaN if an element is, 0 of no elements."""

    def run(x: torch.Tensor, *mean: torch.Tensor) -> list[torch.Tensor]:
        if statically_known_true(x.numel() == 0):
            return [x.new_zeros((), dtype=torch.float32)]
        if not mean:
            return [torch.amax(torch.abs(x)).to(torch.float32)]
        rows = tuple(range(x.dim() - 1))
        below = torch.abs(torch.amin(x, rows).to(torch.float32) - mean[0].reshape(-1))
        above = torch.abs(torch.amax(x, rows).to(torch.float32) - mean[0].reshape(-1))
        return [torch.amax(torch.maximum(below, above))]

    inputs = [source.x] if source.mean is None else [source.x, source.mean]
    (result,) = tracer.insert(("amax", source.mean is None), run, inputs, f"{source.x.name}_amax")
    return result
