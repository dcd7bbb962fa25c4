"""Give quantizations on CUDA to the Triton kernel that reads a tensor once for blocks along its rows and its columns.

The kernel is none that Inductor fuses anything into: what stands between a tensor and its quantization it makes itself.
A residual x - mu - L F, or either part of it, and a Hadamard transform of one are then never stored, but
for what else reads them.

NVFP4's tensor scale comes from the largest magnitude of the whole tensor, which has to be known before the first block
is rounded: a reduction that Inductor fuses with what makes the tensor, where it can. Where a row (the mean of a split)
is subtracted,

    max |x - mu| = max over columns of max(|max x - mu|, |min x - mu|)

which is exact, since rounding keeps order, and comes from the same pass over the tensor as the mean itself. Of what
more is made in registers a kernel of ours finds it, by a second read of x. Where an amax is held, `metis::held_amax`
measures it or, of what is made in registers, `metis::held_tiles_amax`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.compat import lowers_to_triton
from metis_compile.conditioning.hadamard import SIZE, fixed_signs
from metis_compile.kernels.materialize import register_materialize
from metis_compile.kernels.quantize.inductor import register_tile_lowering
from metis_compile.kernels.quantize.ops import HELD_TILES_AMAX, QUANTIZE_TILES, TILES_AMAX
from metis_compile.numerics.blocks import normalize_axis
from metis_compile.ops.hadamard import HADAMARD
from metis_compile.ops.held_amax import HELD_AMAX
from metis_compile.ops.quantization import QUANTIZE
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.calls import QuantizeCall, ResidualCall
from metis_compile.passes.graph.inline import Inliner
from metis_compile.passes.graph.views import from_bfloat16

aten, prims = torch.ops.aten, torch.ops.prims
INPUTS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_RANK = 128  # of thin factors: with more, making a product twice costs more than storing it


class Source(NamedTuple):
    """What is quantized, as nodes: (x - mean - left @ right) H."""

    x: fx.Node
    mean: fx.Node | None = None  # as many elements as x has columns, float32
    left: fx.Node | None = None  # [rows, rank], bfloat16 where that holds it, else float32
    right: fx.Node | None = None  # [rank, columns], the same
    signs: fx.Node | None = None  # 16 float32: those of H


def fuse_quantizations(context: PassContext) -> PassResult:
    """Gives quantizations on CUDA to the Triton kernel that reads a tensor once."""
    nodes = context.graph.find_nodes(op="call_function", target=QUANTIZE)
    calls = call_tiles(context.builder, context.inliner, nodes) if nodes else 0
    if calls:
        register_materialize()
        register_tile_lowering()
    return PassResult(changed=calls)


def call_tiles(builder: GraphBuilder, inliner: Inliner, nodes: Sequence[fx.Node]) -> int:
    """Replaces those of the metis.quantize `nodes` that the kernel takes; returns how many calls take their place."""
    groups: dict[Any, list[QuantizeCall]] = {}
    for call in filter(is_fused, filter(None, map(QuantizeCall.of, nodes))):
        pairs = call.axis >= call.x.meta["val"].dim() - 2 and not call.spec.orientation_free
        key = call.x, call.spec, None if pairs else call.node, call.seed, call.amax
        groups.setdefault(key, []).append(call)
    calls = _Calls(builder, inliner)
    for group in groups.values():
        calls.replace(group)
    return len(groups)


def is_fused(call: QuantizeCall) -> bool:
    """Whether the kernel takes it."""
    value = call.x.meta["val"]
    return lowers_to_triton(value.device) and value.dtype in INPUTS and call.spec.block_shape is not None


class _Calls:
    def __init__(self, builder: GraphBuilder, inliner: Inliner) -> None:
        self.builder, self.inliner = builder, inliner
        self._amaxes: dict[Source, fx.Node] = {}
        self._fixed_signs: dict[torch.device, fx.Node] = {}

    def replace(self, group: list[QuantizeCall]) -> None:
        """One call for `group`: quantizations of one tensor by one spec along different axes."""
        first, spec, seed = group[0].node, group[0].spec, group[0].seed
        axes = [call.axis for call in group]
        streams = [call.stream for call in group]
        swizzled = [call.axis for call in group if call.swizzled]
        with self.builder.at(first, like=first):
            amax = group[0].amax
            if amax is not None:
                self._held(amax, group[0].x, axes)
            source = self._source_of(group[0].x, axes)
            if spec.fmt.tensor_scale and amax is None:
                if source not in self._amaxes:
                    self._amaxes[source] = self._amax(source, axes[0])
                amax = self._amaxes[source]
            args = (*self._tensors(source), amax, seed, str(spec), axes, streams, swizzled)
            made = self.builder.call(QUANTIZE_TILES, args, name=f"{first.name}_tiles")
            results = [self.builder.call(operator.getitem, (made, i)) for i in range(len(made.meta["val"]))]
        for i, call in enumerate(group):
            parts = [*results[2 * i : 2 * i + 2], *results[2 * len(group) :]]
            for user in list(call.node.users):
                user.replace_all_uses_with(parts[user.args[1]])  # type: ignore[index]

    def _held(self, amax: fx.Node, x: fx.Node, axes: Sequence[int]) -> None:
        """Has the amax measured of what lies in memory, not of what is made in registers."""
        held: Any = amax.args[0] if amax.target is operator.getitem else None
        if held is None or held.target is not HELD_AMAX or held.args[0] is not x:
            return  # forward holds it, or it was seen to
        _, kept, every = held.args
        with self.builder.at(held, like=held):
            source = self._source_of(x, axes)
            if not any(source[1:]):
                held.update_arg(0, source.x)
                return
            made = self.builder.call(HELD_TILES_AMAX, (*self._tensors(source), axes[0], kept, every), name=held.name)
        held.replace_all_uses_with(made)
        self.builder.graph.erase_node(held)

    def _source_of(self, x: fx.Node, axes: Sequence[int]) -> Source:
        """x as it lies in memory, and what is done to it on the way to its quantization along `axes`, from 0."""
        base = _transformed(x, axes)
        if base is not None:  # not of a thin product's result: registers would not do
            return _centered(base)._replace(signs=self._signs(x))
        call = ResidualCall.of(x)
        if call is None or not _is_low_rank(call) or not _only_quantized(x):
            return _centered(x)
        source = _centered(call.x) if call.mean is None else Source(_stored(call.x), call.mean)
        return source._replace(left=call.left, right=call.right)

    def _signs(self, transform: fx.Node) -> fx.Node:
        if len(transform.args) > 2:
            return transform.args[2]  # type: ignore[return-value]
        device = transform.meta["val"].device
        if device not in self._fixed_signs:
            (signs,) = self.inliner.insert(("fixed signs", device), lambda: [fixed_signs(device)], [], "metis_signs")
            self._fixed_signs[device] = signs
        return self._fixed_signs[device]

    @staticmethod
    def _tensors(source: Source) -> Source:
        """The source as the kernel takes it: factors in bfloat16 where that holds them."""
        left, right = source.left, source.right
        if left is None or right is None or not (from_bfloat16(left) and from_bfloat16(right)):
            return source
        stored: list[Any] = [left.args[0], right.args[0]]
        return source._replace(left=stored[0], right=stored[1])

    def _amax(self, source: Source, axis: int) -> fx.Node:
        """The largest magnitude of what is quantized, 0-dim float32: NaN if an element is, 0 of no elements."""
        name = f"{source.x.name}_amax"
        if source.left is not None or source.signs is not None:
            return self.builder.call(TILES_AMAX, (*self._tensors(source), axis), name=name)

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
        (result,) = self.inliner.insert(("amax", source.mean is None), run, inputs, name)
        return result


def _transformed(x: fx.Node, axes: Sequence[int]) -> fx.Node | None:
    """What x is a Hadamard transform of along the one axis that it is quantized along, if the kernel can do it."""
    if x.target is not HADAMARD or not _only_quantized(x):
        return None
    base, axis, *signs = list[Any](x.args)
    value = base.meta["val"]
    if any(given is not None and not _same(given.meta["val"].shape, [SIZE]) for given in signs):
        return None
    if [normalize_axis(axis, value.dim())] != list(axes) or value.dtype not in INPUTS:
        return None
    return base if _same(value.shape, x.meta["val"].shape) else None  # x may be filled up to whole blocks


def _is_low_rank(call: ResidualCall) -> bool:
    rank = 0 if call.left is None else call.left.meta["val"].shape[1]
    return isinstance(rank, int) and 1 <= rank <= LARGEST_RANK


def _centered(x: fx.Node) -> Source:
    """x, or where it is no more than centered, what is and its mean."""
    call = ResidualCall.of(x)
    return Source(_stored(x)) if call is None or call.left is not None else Source(_stored(call.x), call.mean)


def _stored(x: fx.Node) -> fx.Node:
    """x, or where it was cast to float32, what was cast: the kernel casts what it reads."""
    if x.target is prims.convert_element_type.default and x.meta["val"].dtype == torch.float32:
        narrow: Any = x.args[0]
        return narrow if narrow.meta["val"].dtype in INPUTS else x  # type: ignore[no-any-return]
    return x


def _only_quantized(x: fx.Node) -> bool:
    """Whether all that reads elements of x is quantizations, Hadamard transforms, and what holds an amax."""
    return all(u.target in (QUANTIZE, HADAMARD, HELD_AMAX, aten.sym_size.int) for u in x.users)


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal; puts no guard on a symbolic size."""
    return len(a) == len(b) and all(statically_known_true(m == n) for m, n in zip(a, b, strict=True))
