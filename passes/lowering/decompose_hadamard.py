"""Hadamard transforms as ordinary ops again, where no kernel took them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from metis_compile.conditioning.hadamard import fixed_signs, hadamard, inverse_hadamard
from metis_compile.ops.hadamard import HADAMARD, INVERSE_HADAMARD
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.inline import Inliner


def decompose_hadamard(context: PassContext) -> PassResult:
    """Traces `metis::hadamard` and its inverse in their places."""
    return PassResult(changed=write_transforms(context.graph))


def write_transforms(graph: fx.Graph) -> int:
    """Traces every `metis::hadamard` and `metis::inverse_hadamard` in its place; returns how many there were."""
    nodes = [n for n in graph.nodes if n.target in (HADAMARD, INVERSE_HADAMARD)]
    if not nodes:
        return 0
    inliner = Inliner(GraphBuilder(graph))
    for node in nodes:
        if node.users:
            with inliner.builder.at(node, like=node):
                node.replace_all_uses_with(_write(inliner, node))
        graph.erase_node(node)
    return len(nodes)


def _write(inliner: Inliner, node: fx.Node) -> fx.Node:
    x, axis, *rest = list[Any](node.args)
    length = rest.pop(0) if node.target is INVERSE_HADAMARD else None
    signs = [given for given in rest if given is not None]
    lengths = [] if length is None else [length]

    def run(x: Tensor, *given: Any) -> list[Tensor]:
        with_signs = given[len(lengths)] if signs else fixed_signs(x.device)
        if lengths:
            return [inverse_hadamard(x, axis, with_signs, given[0])]
        return [hadamard(x, axis, with_signs)]

    (result,) = inliner.insert((node.target, axis), run, [x, *lengths, *signs], node.name)
    return result
