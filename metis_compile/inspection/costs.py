"""What the kernels of a captured graph are for: its products, or the rest of a step; and of the plain graph, all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from metis_compile.compat import size_hint
from metis_compile.cost_model.graph import kernels_of
from metis_compile.cost_model.kernels import Kernel, Number, product
from metis_compile.inspection.expand import repeat_of
from metis_compile.inspection.repeats import Cut
from metis_compile.passes.graph.provenance import module_name
from metis_compile.passes.record import CapturedGraph

if TYPE_CHECKING:
    from metis_compile.passes.graph.sites import Site


@dataclass(frozen=True, kw_only=True)
class SiteCost:
    """The kernels of one product, and what it is where it is not quantized.

    Each kernel stands with the number of products that it is for: a shared quantization costs each of them its part.
    """

    kernels: tuple[tuple[Kernel, int], ...]
    plain: tuple[tuple[Kernel, int], ...]

    @property
    def flops(self) -> dict[str, Number]:
        """Kind of kernel -> floating-point operations; expressions where sizes are symbols."""
        return self._sums("flops")

    @property
    def nbytes(self) -> dict[str, Number]:
        """Kind of kernel -> bytes read and written, as `flops`."""
        return self._sums("nbytes")

    def _sums(self, what: str) -> dict[str, Number]:
        found: dict[str, Number] = defaultdict(int)
        for kernel, products in self.kernels:
            found[kernel.kind] += getattr(kernel, what) / products if products > 1 else getattr(kernel, what)
        return dict(found)


@dataclass(frozen=True, kw_only=True)
class GraphCosts:
    """Of one graph. Each kernel that belongs to no product stands with how often the model has it."""

    sites: list[SiteCost]
    rest: list[tuple[Kernel, int]]
    plain: list[tuple[Kernel, int]]  # all kernels of the graph as it was before our passes
    sizes: dict[str, int]  # symbol -> the size that it stood for


def costs_of(graph: CapturedGraph, cut: Cut) -> GraphCosts:
    """The kernels of a graph before and after our passes."""
    assert graph.joint_before is not None
    assert graph.joint_after is not None
    products = {site.node.name: place for place, site in enumerate(graph.sites)}
    own: list[list[tuple[Kernel, int]]] = [[] for _ in graph.sites]
    rest = []
    after = graph.joint_after.graph
    times = _times(after, cut)
    for placed in kernels_of(after, products):
        for place in placed.sites:
            own[place].append((placed.kernel, len(placed.sites)))
        if not placed.sites:
            rest.append((placed.kernel, times[placed.node]))
    before = graph.joint_before.graph
    times = _times(before, cut)
    return GraphCosts(
        sites=[_site_cost(site, tuple(kernels)) for site, kernels in zip(graph.sites, own, strict=True)],
        rest=rest,
        plain=[(placed.kernel, times[placed.node]) for placed in kernels_of(before, {})],
        sizes=_sizes(before),
    )


def _site_cost(site: Site, kernels: tuple[tuple[Kernel, int], ...]) -> SiteCost:
    if site.reason is not None:
        return SiteCost(kernels=kernels, plain=kernels)
    dtype = torch.float32 if any(o.dtype == torch.float32 for o in site.operands) else torch.bfloat16
    return SiteCost(kernels=kernels, plain=((product(site.batch, site.m, site.n, site.k, dtype=dtype), 1),))


def _times(graph: fx.Graph, cut: Cut) -> dict[fx.Node, int]:
    """How often the model has each node of a graph that blocks were cut out of.

    A node that autograd added, such as a sum of gradients, belongs to the module of what it reads, of two to that of
    what was computed last.
    """
    modules: dict[fx.Node, str] = {}
    order: dict[fx.Node, int] = {}
    found = {}
    for place, node in enumerate(graph.nodes):
        order[node] = place
        named = [n for n in node.all_input_nodes if modules[n]]
        modules[node] = module_name(node) or (modules[max(named, key=order.__getitem__)] if named else "")
        repeat = repeat_of(modules[node], cut)
        found[node] = 1 if repeat is None else 1 + len(repeat.others)
    return found


def _sizes(graph: fx.Graph) -> dict[str, int]:
    """Symbols among the sizes of a graph's inputs -> what they were."""
    found = {}
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else [value]:
            if isinstance(size, torch.SymInt) and not size.node.is_nested_int() and size.node.expr.is_symbol:
                found[str(size.node.expr)] = size_hint(size)
    return found


def merged(costs: Sequence[GraphCosts]) -> tuple[list[tuple[Kernel, int]], list[tuple[Kernel, int]], Mapping[str, int]]:
    """The rest, the plain kernels and the sizes of all graphs of a model."""
    sizes: dict[str, int] = {}
    for each in costs:
        sizes |= each.sizes
    return [k for c in costs for k in c.rest], [k for c in costs for k in c.plain], sizes
