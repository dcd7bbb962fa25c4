"""The operators of bases as ordinary ops again, for what knows no others, such as an export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from metis_compile.conditioning import Spectral
from metis_compile.ops.basis import FRESH_BASIS, POWER_STEP
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.inline import Inliner

SKETCH = ("sample", "sample_least", "sketch", "oversample", "power_steps")


def decompose_bases(graph: fx.Graph) -> int:
    """Traces `metis::fresh_basis` and `metis::power_step` in their places; returns how many there were.

    A sketch is then made each time, and not used where the basis is not stale.
    """
    nodes = [n for n in graph.nodes if n.target in (FRESH_BASIS, POWER_STEP)]
    if not nodes:
        return 0
    builder = GraphBuilder(graph)
    inliner = Inliner(builder)
    for node in nodes:
        args: Any = node.args
        with builder.at(node, like=node):
            if node.target is POWER_STEP:
                (result,) = inliner.insert("power step", _power_step, args, node.name)
            else:
                result = _fresh_basis(inliner, args, node.name)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return len(nodes)


def _power_step(*given: Tensor) -> list[Tensor]:
    return [Spectral().update_basis(*given)]


def _fresh_basis(inliner: Inliner, args: Any, name: str) -> fx.Node:
    x, seed, stream, rank, *rest = args
    settings, kept = rest[: len(SKETCH)], rest[len(SKETCH) :]
    how = Spectral(rank=rank, **dict(zip(SKETCH, settings, strict=True)))

    def run(x: Tensor, seed: Tensor, *given: Tensor) -> list[Tensor]:
        fresh = how.fresh_basis(x, seed, stream=stream, rank=rank)
        return [torch.where(given[1], fresh, given[0]) if given else fresh]

    return inliner.insert(("fresh basis", how, stream), run, [x, seed, *kept], name)[0]
