"""Tell what a product is for by what feeds it and what it feeds: attention, heads, routers, factors of adapters.

Names tell where structure does not (`metis_compile.policy.kinds`). docs/policy-files.md has the definitions.
"""

from __future__ import annotations

import torch
from torch import fx

from metis_compile.passes.graph.flow import (
    is_log_softmax,
    is_of_loss,
    is_pointwise,
    is_product,
    is_rearrangement,
    is_softmax,
    masks,
    reached,
    scales,
    sources,
)
from metis_compile.passes.graph.sites import GraphInputs, Operand, Site
from metis_compile.passes.graph.views import root, same
from metis_compile.passes.joint.roles import Dependencies
from metis_compile.policy.kinds import kind_by_name

aten = torch.ops.aten

LORA_RANK = 32  # two products with nothing between, by way of so few features, are the factors of an adapter
_LORA_SHARE = 4  # where what they connect has at least so many times more
_CHOICES = {aten.topk.default, aten.sort.default, aten.sort.stable}
_CHOICES_OF_PROBABILITIES = {aten.argmax.default, aten.max.dim, aten.multinomial.default}


class Kinds:
    """Kinds of the products of one joint graph."""

    def __init__(self, graph: fx.Graph, depends: Dependencies, inputs: GraphInputs) -> None:
        self.depends, self.inputs = depends, inputs
        self.tables = {
            root(node.args[0])  # type: ignore[arg-type]
            for node in graph.nodes
            if node.target is aten.embedding.default
        }

    def attention(self, node: fx.Node, left: fx.Node, right: fx.Node) -> str | None:
        """Why a product is one of attention, whatever its operands are; None where nothing says so."""
        if any(self._from_softmax(operand) for operand in (left, right)):
            return "it reads the probabilities of a softmax"
        if self._is_scores(node):
            return "its output goes into a softmax whose probabilities a product reads"
        return None

    def settle(self, sites: list[Site]) -> None:
        """Sets `kind` and `kind_reason` of forward products; those of backward have them from their forward."""
        forward = [site for site in sites if site.gemm == "fprop" and site.lhs is not None and site.kind is None]
        for site in forward:
            for name in ("head", "router"):
                why = getattr(self, f"_{name}")(site)
                if why is not None:
                    site.kind, site.kind_reason = name, why
                    break
            else:
                self._by_name(site)
            if site.kind is None and not site.has_weight:
                site.kind, site.kind_reason = "attention", "neither operand is a weight"
        for first, second in self._pairs([s for s in forward if s.kind is None]):
            for site in (first, second):
                site.kind = "adapter"
                site.kind_reason = f"a factor of rank {first.n}, with nothing between it and the other"

    def _by_name(self, site: Site) -> None:
        own = any(name.rpartition(".")[0] == site.module for name in site.weights)
        site.kind = kind_by_name(site.module, in_block=site.block is not None, own_weight=own)
        if site.kind is None:
            named = (kind_by_name(weight, in_block=True) for weight in site.weights)
            site.kind = next((kind for kind in named if kind == "adapter"), None)
        if site.kind is not None:
            site.kind_reason = "by its name"

    def _forward(self, node: fx.Node) -> bool:
        return node.op == "output" or node not in self.depends.tangent

    def _is_plain(self, node: fx.Node) -> bool:
        """Whether a node changes how values lie, are scaled or masked, and which are dropped, but not what they are."""
        return is_rearrangement(node) or masks(node) or scales(node, self.depends.data)

    def _from_softmax(self, operand: fx.Node) -> bool:
        found = sources(operand, lambda node: self._is_plain(node) and not is_softmax(node))
        return any(is_softmax(node) for node in found)

    def _is_scores(self, node: fx.Node) -> bool:
        def passes(user: fx.Node) -> bool:
            return (is_pointwise(user) or is_rearrangement(user)) and not is_softmax(user)

        entries = [n for n in reached(node, passes, self._forward) if is_softmax(n)]
        return any(self._read_by_product(entry) for entry in entries)

    def _read_by_product(self, entry: fx.Node) -> bool:
        def passes(user: fx.Node) -> bool:
            return is_softmax(user) or self._is_plain(user)

        return any(is_product(n) for n in reached(entry, passes, self._forward))

    def _head(self, site: Site) -> str | None:
        if not site.has_weight:
            return None
        if site.module in self.inputs.heads and site.module:
            return "the model says that it computes its logits"
        tied = [name for name in site.weights if name in self.inputs.embeddings]
        if tied or (site.rhs is not None and root(site.rhs.base) in self.tables):
            return "its weight is also an embedding's"

        def passes(user: fx.Node) -> bool:
            return (
                self._is_plain(user)
                or user.target is aten.tanh.default
                or (user.target is aten.add.Tensor and sum(n in self.depends.data for n in user.all_input_nodes) < 2)
            )

        outputs = False
        for node in reached(site.node, passes, self._forward):
            if is_of_loss(node):
                return "its output goes into a loss"
            if is_log_softmax(node):
                return "its output goes into a log-softmax"
            outputs = outputs or node.op == "output"
        words = self.inputs.vocabulary
        if outputs and site.block is None and words is not None and same(site.n, words):
            return f"its output is the graph's, with a column for each of the {words} embeddings"
        return None

    def _router(self, site: Site) -> str | None:
        if not site.has_weight:
            return None
        named_gate = site.module.rpartition(".")[2] == "gate"
        softmax = gated = output = False

        def passes(user: fx.Node) -> bool:
            return is_pointwise(user) or is_rearrangement(user) or is_softmax(user)

        for node in reached(site.node, passes, self._forward):
            softmax = softmax or is_softmax(node) or node.target is aten.sigmoid.default
            if node.target in _CHOICES or (node.target in _CHOICES_OF_PROBABILITIES and softmax):
                return "its output chooses by size"
            gated = gated or is_product(node)
            output = output or node.op == "output"
        if named_gate and (any(is_softmax(n) for n in reached(site.node, passes, self._forward)) or output > gated):
            return "by its name, and its output goes into a softmax or leaves the graph"
        return None

    def _pairs(self, sites: list[Site]) -> list[tuple[Site, Site]]:
        """Products one of which multiplies the output of the other, with few features between them."""
        small = [s for s in sites if s.has_weight and isinstance(s.n, int) and s.n <= LORA_RANK]
        after: dict[fx.Node, list[Site]] = {}
        for site in sites:
            if site.lhs is not None and site.has_weight:
                after.setdefault(self._plain_source(site.lhs), []).append(site)
        return [
            (first, second)
            for first in small
            for second in after.get(first.node, ())
            if isinstance(first.k, int)
            and isinstance(second.n, int)
            and first.n * _LORA_SHARE <= min(first.k, second.n)
        ]

    def _plain_source(self, operand: Operand) -> fx.Node:
        node = operand.node
        while self._is_plain(node) and not is_product(node):
            node = next((n for n in node.all_input_nodes if n in self.depends.data), node.all_input_nodes[0])
        return node
