"""Rewrite sites: their operands become `metis::dequantize(metis::quantize(...))` of the unquantized tensors.

    y = mm(x, w_t)   ->   x_parts = metis.quantize(x, "nvfp4 1x16 nearest", 1)      codes, block scales, tensor scale
                          x_q     = metis.dequantize(x_parts, ..., 1, k)            float32
                          ...                                                       the same for w, along its own axis
                          y       = mm(x_q, permute(w_q))

A product of bfloat16 or float16 matrices is done in float32 and cast: E2M1 times its scale is exact there, so the
result is what a block-scaled tensor core with a float32 accumulator gives, to summation order.

A grouped product quantizes all its tokens as one matrix, zeros where they belong to no group: what such rows hold would
set the scale of the others. Where it contracts over tokens, a block may hold tokens of two groups.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from metis_compile.conditioning import Conditioning, has_own_rank, kept_step, with_kept_rank
from metis_compile.cost_model.graph import MARK
from metis_compile.numerics import QuantSpec
from metis_compile.ops.grouped import GROUPED_MM
from metis_compile.ops.held_amax import HELD_AMAX, KEPT_SHAPE
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.products import OPERANDS
from metis_compile.passes.graph.sites import GraphInputs, KeptName, Operand, Site
from metis_compile.passes.graph.views import for_any_matrix, same, target_of, undoes
from metis_compile.passes.joint.site_errors import errors_at
from metis_compile.passes.joint.tails import Conditioner, Hadamard, Parts, Side
from metis_compile.policy import Treatment

aten = torch.ops.aten
WITHOUT_ADDED: dict[Any, Any] = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}
PART_NAMES = ("codes", "block_scales", "tensor_scale")


def rewrite(context: PassContext) -> PassResult:
    """Rewrites every site that the policy treats; what nothing reads any more leaves the graph."""
    rewriter = Rewriter(context.graph, context.sites, context.inputs)
    open_sites = [site for site in context.sites if site.reason is None]
    for place, site in enumerate(context.sites):
        if site.reason is None:
            with errors_at(site, context.config), rewriter.builder.marking(**{MARK: place}):
                rewriter.rewrite(site)
    context.graph.eliminate_dead_code()
    left = [(str(site), site.reason) for site in open_sites if site.reason is not None]
    return PassResult(changed=len(open_sites) - len(left), left=left)


class Rewriter:
    """Quantizes operands, each once, and rewires the products that read them."""

    def __init__(self, graph: fx.Graph, sites: list[Site], inputs: GraphInputs) -> None:
        self.builder = GraphBuilder(graph)
        self.inputs = inputs
        self.conditioner = Conditioner(self.builder, inputs)
        self.forward_products = {s.seq: s.node for s in sites if s.gemm == "fprop" and s.operands}
        self._quantized: dict[Any, fx.Node] = {}
        self._amaxes: dict[Any, fx.Node] = {}
        self._dequantized: dict[Any, fx.Node] = {}
        self._splits: dict[Any, tuple[Conditioning, KeptName | None]] = {}
        self._begun: set[Any] = set()
        self._streams = 0  # numbers the tensors that round at random: each draws its own noise
        self._without_strays(sites)
        # A graph has thousands of operands, so who reads a node is looked up, and not searched for with each product.
        self._readers: dict[fx.Node, list[tuple[Site, Operand]]] = defaultdict(list)
        for site in sites:
            for operand in site.operands:
                for node in {operand.base, operand.node}:
                    self._readers[node].append((site, operand))

    def rewrite(self, site: Site) -> None:
        """Replaces the site's operands and adds the tails of those that are split.

        A float32 product without tails stays the node it was; others are replaced.
        """
        args = list(site.node.args)
        sides = [self._side(site, operand) for operand in site.operands]
        for position, side in zip(OPERANDS[site.node.target], sides, strict=True):
            args[position] = self._as_read(site, side)
        with self.builder.at(site.node, like=site.node), self.builder.marking(metis_tail=True):
            if site.offs is None:
                tails = self.conditioner.tails(*sides)
            else:
                left, right = sides
                tails = self.conditioner.grouped_tails(left, right, site.offs, over_tokens=site.groups_contracted)
        as_it_is = site.offs is None or site.node.target is GROUPED_MM
        if site.node.meta["val"].dtype == torch.float32 and not tails and as_it_is:
            site.node.args = tuple(args)
            site.result = site.node
        else:
            self._product_in_float32(site, args, tails)

    def _without_strays(self, sites: list[Site]) -> None:
        """Gives grouped products tokens that are zero past the last group, made as soon as both are there."""
        masked: dict[Any, fx.Node] = {}
        for site in sites:
            for operand in site.tokens if site.reason is None else ():
                assert site.offs is not None
                if operand.decision is None or operand.decision.treatment.spec is None:
                    continue
                dim = operand.axis if site.groups_contracted else 1 - operand.axis
                key = operand.base, site.offs, dim
                if key not in masked:
                    masked[key] = self._in_groups(site, operand, dim)
                operand.base = masked[key]

    def _in_groups(self, site: Site, operand: Operand, dim: int) -> fx.Node:
        def run(x: torch.Tensor, offs: torch.Tensor) -> list[torch.Tensor]:
            inside = torch.arange(x.shape[dim], device=x.device) < offs[-1]
            return [torch.where(inside[:, None] if dim == 0 else inside, x, 0)]

        base, offs = operand.base, site.offs
        assert offs is not None
        last = base if self.builder.precedes(offs, base) else offs
        _, like, _ = self._place(site, operand)
        with self.builder.at(self.builder.behind(last), like=like):
            # not named after the node: the partitioner takes what has "tangents" in its name for an input of backward
            name = _suffixed(_label(site, operand), "in_groups", site)
            (made,) = self.conditioner.inliner.insert(("in groups", dim), run, [base, offs], name)
        self.builder.take_place(last, made)
        return made

    def _side(self, site: Site, operand: Operand) -> Side:
        """The operand split and quantized, as its base lies."""
        assert operand.decision is not None
        treatment = operand.decision.treatment
        spec, split, parts = treatment.spec, treatment.split, None
        hadamard = hadamard_of(treatment)
        in_backward = site.in_backward and operand.role == "activation"
        if spec is None:
            quantized = operand.base
        else:
            source = operand.base
            if split is not None:
                split, kept_name = self._ranked(site, operand, split)
                parts = self._split(site, operand, split, kept_name)
                source = parts.residual
            if hadamard is not None:
                source = self._hadamard(operand, source, hadamard)
            amax = None if treatment.hold_amax is None else self._held_amax(site, operand, source, treatment.hold_amax)
            operand.quantized = self._quantize(site, operand, spec, source, amax)
            operand.kept_as = tuple(u.name for u in operand.quantized.users if u.target is operator.getitem)
            quantized = self._dequantize(site, operand, spec)
        return Side(
            operand=operand,
            is_left=operand is site.lhs,
            split=split,
            parts=parts,
            quantized=quantized,
            spec=spec,
            only_saved=in_backward and spec is not None,
            hadamard=hadamard if spec is not None else None,
        )

    def _as_read(self, site: Site, side: Side) -> fx.Node:
        """The operand of the big product, in the orientation in which it reads it."""
        value: Any = side.quantized
        if side.spec is None:
            return side.operand.node
        sizes = zip(value.meta["val"].shape, side.operand.base.meta["val"].shape, strict=True)
        filled_up = not all(same(a, b) for a, b in sizes)  # to whole blocks of the Hadamard transform
        with self.builder.at(site.node, like=site.node):
            for view in side.operand.views:
                if undoes(view, value):
                    value = value.args[0]
                else:
                    target, args = for_any_matrix(view) if filled_up else (target_of(view), view.args[1:])
                    value = self.builder.call(target, (value, *args), view.kwargs, name=view.name)
        return value

    def _ranked(self, site: Site, operand: Operand, split: Conditioning) -> tuple[Conditioning, KeptName | None]:
        """The split with its rank for this tensor, the same for all products that read it, and its basis's name.

        A rank that depends on how many rows there are is that of the basis which another graph keeps there already.
        """
        key = (operand.base, split)
        if key not in self._splits:
            rows, columns = operand.base.meta["val"].shape
            others = [
                reader.n if read is reader.lhs else reader.m
                for reader, read in self._readers[operand.base]
                if reader.gemm == site.gemm and reader.reason is None
                if read.base is operand.base and read.decision is not None and read.decision.treatment.split == split
            ]
            name, own = None, split
            if kept_step(split) is not None:
                name = self.conditioner.kept.name(site, operand.role)
                shape = self.inputs.kept.get(name)
                if shape is not None and same(shape[-1], columns) and not has_own_rank(split):
                    own = with_kept_rank(split, shape[0])
            self._splits[key] = own.with_rank(rows, columns, sum(others)), name
        return self._splits[key]

    def _split(self, site: Site, operand: Operand, split: Conditioning, kept_name: KeptName | None) -> Parts:
        assert operand.decision is not None
        policy_split = operand.decision.treatment.split  # without a rank of its own
        has_basis = (operand.base, split) in self._begun  # which all axes share
        self._begun.add((operand.base, split))
        before, like, in_backward = self._first_place(
            operand.base,
            lambda other, treatment: treatment.split == policy_split and (not has_basis or other.axis == operand.axis),
        )
        label = _label(site, operand)
        with self.builder.at(before, like=like):
            return self.conditioner.split(
                operand, split, self._next_stream(), label, kept_name=kept_name, backward=in_backward
            )

    def _hadamard(self, operand: Operand, source: fx.Node, how: Hadamard) -> fx.Node:
        assert operand.decision is not None
        split = operand.decision.treatment.split
        before, like, _ = self._first_place(
            operand.base,
            lambda other, treatment: (
                other.axis == operand.axis and treatment.split == split and hadamard_of(treatment) == how
            ),
        )
        with self.builder.at(before, like=like):
            return self.conditioner.hadamard(source, operand.axis, how)

    def _next_stream(self) -> int:
        self._streams += 1
        return self._streams

    def _held_amax(self, site: Site, operand: Operand, source: fx.Node, every: int) -> fx.Node | None:
        """The amax to quantize `source` by, the same for all products that read it; None where it can't be held."""
        kept, key = self.conditioner.kept, (source, every)
        if key not in self._amaxes:
            why = kept.refusal(KEPT_SHAPE)
            if why is not None:
                operand.note = operand.note or f"amax measured in each step: {why}"
                return None
            before, like, in_backward = self._first_place(operand.base, self._same_source(operand))
            kept_name = kept.name(site, f"{operand.role}.amax")
            slot = kept.at(kept_name, KEPT_SHAPE, torch.device("cpu"), in_backward)
            name = _suffixed(_label(site, operand), "amax", site)
            with self.builder.at(before, like=like):
                made = self.builder.call(HELD_AMAX, (source, slot.read(f"{name}_kept"), every), name=f"{name}_held")
                amax, moved = (
                    self.builder.call(operator.getitem, (made, i), name=part)
                    for i, part in enumerate((name, f"{name}_next"))
                )
                if kept.training:  # evaluation moves nothing on
                    slot.write(moved)
            slot.forget(made)
            slot.keep(amax)
            self._amaxes[key] = amax
        return self._amaxes[key]

    @staticmethod
    def _same_source(operand: Operand) -> Callable[[Operand, Treatment], bool]:
        """Whether another operand of this base is quantized from the same tensor, its amax held for as long."""
        assert operand.decision is not None
        own = operand.decision.treatment
        of_axis = own.hadamard is not None or (own.split is not None and own.split.depends_on_axis)

        def shares(other: Operand, treatment: Treatment) -> bool:
            alike = (treatment.hold_amax, treatment.split, hadamard_of(treatment)) == (
                own.hold_amax,
                own.split,
                hadamard_of(own),
            )
            return alike and (not of_axis or other.axis == operand.axis)

        return shares

    def _quantize(
        self, site: Site, operand: Operand, spec: QuantSpec, source: fx.Node, amax: fx.Node | None
    ) -> fx.Node:
        key = (source, spec, None if spec.orientation_free else operand.axis, amax)
        if key in self._quantized:
            return self._quantized[key]
        label = _label(site, operand)
        before, like, _ = self._place(site, operand)
        with self.builder.at(before, like=like):
            random: tuple[Any, ...] = ()
            if spec.needs_noise:
                random = (self.builder.seed(source.meta["val"].device), self._next_stream())
            node = self.builder.call(
                QUANTIZE,
                (source, str(spec), operand.axis, *random),
                {} if amax is None else {"amax": amax},
                name=_suffixed(label, "quantized", site),
            )
            parts = len(node.meta["val"])
            names = PART_NAMES if parts == 3 else _two_part_names(spec)
            for i, part in enumerate(names):
                self.builder.call(operator.getitem, (node, i), name=_suffixed(label, part, site))
        self._quantized[key] = node
        return node

    def _dequantize(self, site: Site, operand: Operand, spec: QuantSpec) -> fx.Node:
        quantized: Any = operand.quantized
        if quantized not in self._dequantized:
            with self.builder.at(site.node, like=site.node):
                parts = sorted((u for u in quantized.users if u.target is operator.getitem), key=lambda n: n.args[1])
                self._dequantized[quantized] = self.builder.call(
                    DEQUANTIZE,
                    (parts, str(spec), quantized.args[2], self.builder.size(quantized.args[0], quantized.args[2])),
                    name=_suffixed(_label(site, operand), "dequantized", site),
                )
        return self._dequantized[quantized]

    def _place(self, site: Site, operand: Operand) -> tuple[fx.Node, fx.Node, bool]:
        """Where to quantize, whose metadata to carry, and whether that is in backward.

        An activation that backward needs is quantized in the forward.
        """
        forward = self.forward_products.get(site.seq)
        saved = site.in_backward and operand.role == "activation"
        if saved and forward is not None and self.builder.precedes(operand.base, forward):
            return forward, forward, False
        return site.node, site.node, site.in_backward

    def _first_place(
        self, base: fx.Node, shares: Callable[[Operand, Treatment], bool]
    ) -> tuple[fx.Node, fx.Node, bool]:
        """The earliest place of the products that share something made of `base`.

        The one that is rewritten first need not be the one that is quantized first.
        """
        places = [
            self._place(site, operand)
            for site, operand in self._readers[base]
            if site.reason is None and operand.base is base and operand.decision is not None
            if operand.decision.treatment.spec is not None and shares(operand, operand.decision.treatment)
        ]
        first = places[0]
        for place in places[1:]:
            if self.builder.precedes(place[0], first[0]):
                first = place
        return first

    def _product_in_float32(self, site: Site, args: list[Any], tails: list[fx.Node]) -> None:
        node = site.node
        with self.builder.at(node, like=node):
            target, kwargs = target_of(node), node.kwargs
            if site.offs is not None:
                target, kwargs, args = GROUPED_MM, {}, args[:2]
            args = [self.builder.cast(a, torch.float32) if isinstance(a, fx.Node) else a for a in args]
            if site.offs is not None:
                args.append(site.offs)
            scaled = bool(tails) and any(value != 1 for value in kwargs.values())
            if scaled:  # alpha is of the whole product, its tails too
                target, added, args = WITHOUT_ADDED[target], args[0], args[1:]
            product = self.builder.call(target, tuple(args), {} if scaled else kwargs, name=f"{node.name}_float32")
            result = product
            for tail in tails:
                result = self.builder.call(aten.add.Tensor, (result, tail), name=f"{node.name}_with_tail")
            if scaled:
                result = self._scaled(result, added, **kwargs)
            site.result = None if scaled else result
            result = self.builder.cast(result, node.meta["val"].dtype)
        node.replace_all_uses_with(result)
        readers = self._readers.pop(node, [])  # products that read this one as it is
        for _, operand in readers:
            operand.base = result if operand.base is node else operand.base
            operand.node = result if operand.node is node else operand.node
        self._readers[result] += readers
        self.builder.take_place(node, product, result)
        self.builder.graph.erase_node(node)
        if self.forward_products.get(site.seq) is node:
            self.forward_products[site.seq] = product
        site.node = product

    def _scaled(self, product: fx.Node, added: fx.Node, *, alpha: Any = 1, beta: Any = 1) -> fx.Node:
        """beta added + alpha product. As torch has it, what is added is not looked at where beta is zero."""
        result = self._times(alpha, product)
        if isinstance(beta, (int, float)) and beta == 0:
            return result
        return self.builder.call(aten.add.Tensor, (result, self._times(beta, added)), name=f"{product.name}_added")

    def _times(self, factor: Any, node: fx.Node) -> fx.Node:
        if isinstance(factor, (int, float)) and factor == 1:
            return node
        return self.builder.call(aten.mul.Tensor, (node, factor), name=f"{node.name}_scaled")


def hadamard_of(treatment: Treatment) -> Hadamard | None:
    """The transform that a treatment asks for."""
    if treatment.hadamard is None or treatment.hadamard_size is None:
        return None
    return Hadamard(str(treatment.hadamard), treatment.hadamard_size)


def _two_part_names(spec: QuantSpec) -> tuple[str, ...]:
    return ("codes", "tensor_scale") if spec.block == "tensor" else ("codes", "block_scales")


def _label(site: Site, operand: Operand) -> str:
    owner = re.sub(r"\W+", "_", site.module) or site.op
    if owner[0].isdigit():
        owner = f"{site.op}_{owner}"
    return f"{owner}_{operand.role}"


def _suffixed(label: str, part: str, site: Site) -> str:
    return f"{label}_{part}" if site.gemm == "fprop" else f"{label}_{part}_{site.gemm}"
