"""From what was seen of one block to what holds for all the blocks that it stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from metis_compile.compat import aot_input
from metis_compile.inspection.repeats import Cut, Repeat, renamed
from metis_compile.passes.record import CapturedGraph

if TYPE_CHECKING:
    from torch import fx

    from metis_compile.inspection.explain import ExplainedSite


def expanded(sites: Sequence[ExplainedSite], cut: Cut) -> list[ExplainedSite]:
    """The products of the whole graph, in its order: forward from the first block, backward from the last."""
    found: list[ExplainedSite] = []
    for (repeat, is_forward), group in groupby(sites, key=lambda s: (repeat_of(s.module, cut), s.gemm == "fprop")):
        seen = list(group)
        if repeat is None:
            found += seen
            continue
        blocks = list(repeat.everywhere())
        for block in blocks if is_forward else reversed(blocks):
            found += [_in_block(site, repeat.kept, block) for site in seen]
    return found


def saved_everywhere(graph: CapturedGraph, cut: Cut) -> int:
    """Bytes that the forward of the whole graph keeps for its backward, parameters not counted."""
    if not cut.repeats or graph.forward is None:
        return graph.saved_bytes
    times = {repeat.kept: 1 + len(repeat.others) for repeat in cut.repeats}
    places = _places(graph.forward, cut)
    total = 0
    for tensor in graph.saved:
        place = places.get(tensor.name, -1)
        if not tensor.is_parameter:
            total += tensor.nbytes * (times.get(cut.names[place], 1) if place >= 0 else 1)
    return total


def _places(forward: fx.GraphModule, cut: Cut) -> dict[str, int]:
    """For each value of a forward graph, the last block whose parameters it depends on: the one that computes it."""
    places: dict[str, int] = {}
    for node in forward.graph.nodes:
        if node.op == "placeholder":
            position = aot_input(node.meta.get("desc"))[0]
            places[node.name] = -1 if position is None else cut.order.get(position, -1)
        else:
            places[node.name] = max((places[n.name] for n in node.all_input_nodes), default=-1)
    return places


def repeat_of(module: str, cut: Cut) -> Repeat | None:
    return next((r for r in cut.repeats if module == r.kept or module.startswith(f"{r.kept}.")), None)


def _in_block(site: ExplainedSite, kept: str, block: str) -> ExplainedSite:
    if block == kept:
        return site
    label, new = (re.sub(r"\W+", "_", name) + "_" for name in (kept, block))

    def inside(name: str) -> str:
        return new + name[len(label) :] if name.startswith(label) else f"{name} of {block}"

    return replace(
        site,
        module=renamed(site.module, kept, block),
        weights=tuple(renamed(w, kept, block) for w in site.weights),
        saved=tuple(map(inside, site.saved)),
        saved_each={inside(name): nbytes for name, nbytes in site.saved_each.items()},
        quantized={role: inside(name) for role, name in site.quantized.items()},
    )
