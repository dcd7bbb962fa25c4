"""Multiply weights' gradients by what stands for the derivative of their rounding: see `numerics/estimator.py`.

    dw = mm(g^T, x)   ->   dw = mm(g^T, x) * f'(w)        float32, and cast to what the product was

f' is of the weight as fprop quantizes it, and is made from it in backward: nothing is saved. A product that the policy
leaves in high precision is multiplied too. Runs before the products are rewritten, which replace what is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from metis_compile.numerics import QuantSpec
from metis_compile.numerics.estimator import dge_factor
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.inline import Inliner
from metis_compile.passes.graph.sites import Operand, Site

aten = torch.ops.aten


def estimate_gradients(context: PassContext) -> PassResult:
    """Multiplies the product of each wgrad whose fprop has an estimator for its weight."""
    builder = GraphBuilder(context.graph)
    inliner = Inliner(builder)
    # by weight too: a function with a backward of its own may multiply several, under one of autograd's numbers
    estimated = {(s.seq, s.weights): weight for s in context.sites if (weight := _estimated(s)) is not None}
    found = [site for site in context.sites if site.gemm == "wgrad" and (site.seq, site.weights) in estimated]
    for site in found:
        _multiply(site, estimated[site.seq, site.weights], builder, inliner)
    return PassResult(changed=len(found))


def _estimated(site: Site) -> Operand | None:
    """The weight of a fprop that has an estimator."""
    if site.gemm != "fprop" or site.reason is not None or site.seq is None:
        return None
    decided = [o for o in site.operands if o.role == "weight" and o.decision is not None]
    return next((o for o in decided if o.decision is not None and o.decision.treatment.estimator is not None), None)


def _multiply(site: Site, weight: Operand, builder: GraphBuilder, inliner: Inliner) -> None:
    assert weight.decision is not None
    spec, axis, node = weight.decision.treatment.spec, weight.axis, site.node
    assert spec is not None
    # A product is [outputs, inputs] where the gradient is on its left, a weight where its second axis is contracted.
    is_transposed = (site.lhs is not None and site.lhs.role == "gradient") != (axis == 1)
    users = list(node.users)
    with builder.at(builder.behind(node), like=node):
        made = inliner.insert(
            ("dge", spec, axis, is_transposed),
            _run(spec, axis, is_transposed),
            [node, weight.base],
            f"{node.name}_estimated",
        )
    for user in users:
        user.replace_input_with(node, made[0])


def _run(spec: QuantSpec, axis: int, is_transposed: bool) -> Callable[..., list[torch.Tensor]]:
    def run(product: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        factor = dge_factor(weight, spec, axis)
        if product.dim() > factor.dim():  # addbmm: a matrix in forward, what it is joined of in backward
            factor = factor.reshape(product.shape[0], -1, factor.shape[-1])
        factor = factor.mT if is_transposed else factor
        return [(product.to(torch.float32) * factor).to(product.dtype)]

    return run
