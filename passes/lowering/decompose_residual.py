"""Residuals as ordinary ops again, where no kernel takes them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx

from metis_compile.conditioning import residual
from metis_compile.ops.residual import RESIDUAL
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.calls import ResidualCall
from metis_compile.passes.graph.inline import Inliner
from metis_compile.passes.lowering.cpu_gemm import takes_residual


def decompose_residual(context: PassContext) -> PassResult:
    """Traces `metis::residual` in its place where no C++ kernel will subtract its product."""
    by_kernels = context.calls_cpu_kernels
    return PassResult(changed=write_residuals(context.graph, lambda call: by_kernels and takes_residual(call)))


def write_residuals(graph: fx.Graph, leave: Callable[[ResidualCall], bool] = lambda call: False) -> int:
    """Traces every `metis::residual` in its place, but for those to `leave`; returns how many."""
    nodes = graph.find_nodes(op="call_function", target=RESIDUAL)
    if not nodes:
        return 0
    inliner, count = Inliner(GraphBuilder(graph)), 0
    for node in nodes:
        call = ResidualCall.of(node)  # as it is now: its x may be the residual that was written out before it
        if call is None or leave(call):
            continue
        if node.users:
            # a product of factors contracts what no block lies along: see `verify`
            with inliner.builder.at(node, like=node), inliner.builder.marking(metis_tail=True):
                node.replace_all_uses_with(_write(inliner, call))
        graph.erase_node(node)
        count += 1
    return count


def _write(inliner: Inliner, call: ResidualCall) -> fx.Node:
    taken = {name: node for name in ("mean", "left", "right") if (node := getattr(call, name)) is not None}

    def run(x: Tensor, *given: Tensor) -> list[Tensor]:
        return [residual(x, **dict(zip(taken, given, strict=True)))]

    (result,) = inliner.insert(("residual", *taken), run, [call.x, *taken.values()], call.node.name)
    return result
