"""`metis::held_amax` as ordinary ops again, for what knows no others, such as an export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from metis_compile.numerics import held_amax
from metis_compile.ops.held_amax import HELD_AMAX
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.inline import Inliner


def decompose_held_amaxes(graph: fx.Graph) -> int:
    """Traces every `metis::held_amax` in its place; returns how many there were.

    The amax is then measured each time, and not used where one is held.
    """
    nodes = graph.find_nodes(op="call_function", target=HELD_AMAX)
    inliner = Inliner(GraphBuilder(graph)) if nodes else None
    for node in nodes:
        assert inliner is not None
        x, kept, every = list[Any](node.args)
        with inliner.builder.at(node, like=node):
            results = inliner.insert(("held amax", every), _run(every), [x, kept], node.name)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
        graph.erase_node(node)
    return len(nodes)


def _run(every: int) -> Callable[[Tensor, Tensor], list[Tensor]]:
    def run(x: Tensor, kept: Tensor) -> list[Tensor]:
        return list(held_amax(x, kept, every))

    return run
