"""Tell the backward products that a loss computes in forward: a linear fused with the loss that reads it.

    logits = x @ w^T        loss(logits), d = its gradient      computed in forward, chunk by chunk: logits are not kept
    dx     = d @ w          read by backward alone, which scales it
    dw     = d^T @ x

Such a linear is a head, whose output goes into a loss that may be a kernel of its own.
"""

from __future__ import annotations

from typing import Literal

from torch import fx

from metis_compile.compat import aot_output
from metis_compile.passes.graph.sites import Operand, Site
from metis_compile.passes.graph.views import root
from metis_compile.passes.joint.roles import Dependencies

__all__ = ["find_early_gradients"]

_WHY = "its gradients are computed in forward, by the loss that reads it"


def find_early_gradients(graph: fx.Graph, sites: list[Site], depends: Dependencies) -> None:
    """Sets gemm, roles and kind of these products, and the kind of the linear that they are of."""
    forward = [site for site in sites if site.gemm == "fprop" and site.lhs is not None and site.offs is None]
    linears = [(site, *parts) for site in forward if (parts := _weight_and_input(site, depends)) is not None]
    if not linears:
        return
    read_by_forward = _sources([o for o in _outputs_of_forward(graph) if o not in depends.tangent])
    for site in forward:
        if site.node in read_by_forward:
            continue
        for linear, weight, x in linears:
            found = _gradient_of(site, linear, weight, x) if linear.node in read_by_forward else None
            if found is None:
                continue
            site.gemm, other, gradient = found
            weight.role, x.role = "weight", "activation"
            other.role, gradient.role = ("weight" if site.gemm == "dgrad" else "activation"), "gradient"
            linear.weights = site.weights = depends.parameters(weight.base)
            site.of_weight = site.early = True
            for each in (linear, site):
                each.kind, each.kind_reason = "head", _WHY
            break


def _gradient_of(
    site: Site, linear: Site, weight: Operand, x: Operand
) -> tuple[Literal["dgrad", "wgrad"], Operand, Operand] | None:
    """Which product of backward, its other operand and its gradient: what comes from the result of `linear`."""
    for other, gradient in (site.operands, site.operands[::-1]):
        if linear.node in _sources([gradient.node]):
            if root(other.base) is root(weight.base):
                return "dgrad", other, gradient
            if root(other.base) is root(x.base):
                return "wgrad", other, gradient
    return None


def _weight_and_input(site: Site, depends: Dependencies) -> tuple[Operand, Operand] | None:
    """Of a product of one parameter: attention may be what it was taken for."""
    of_weight = [bool(depends.parameters(o.base)) and o.base not in depends.data for o in site.operands]
    if of_weight == [False, True]:
        return site.operands[1], site.operands[0]
    return (site.operands[0], site.operands[1]) if of_weight == [True, False] else None


def _outputs_of_forward(graph: fx.Graph) -> list[fx.Node]:
    (output,) = graph.find_nodes(op="output")
    found = output.args[0]
    described = output.meta.get("desc") or [None] * len(found)
    return [
        value
        for value, desc in zip(found, described, strict=True)
        if isinstance(value, fx.Node) and (desc is None or aot_output(desc)[0] == "output")
    ]


def _sources(nodes: list[fx.Node]) -> set[fx.Node]:
    """These nodes and all that they are computed from."""
    seen, stack = set(nodes), list(nodes)
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return seen
