"""Ask the policy what to do with each operand of each site."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from metis_compile.compat import size_hint
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.sites import Site
from metis_compile.passes.graph.views import same, shape_of
from metis_compile.passes.joint.site_errors import errors_at
from metis_compile.policy import Policy, PolicyError, Query


def resolve(context: PassContext) -> PassResult:
    """Sets the decision of each operand of each site."""
    open_sites = [site for site in context.sites if site.reason is None]
    for site in open_sites:
        with errors_at(site, context.config):
            resolve_site(site, context.config.policy)
    left = [(str(site), site.reason) for site in open_sites if site.reason is not None]
    return PassResult(changed=len(open_sites) - len(left), left=left)


def resolve_site(site: Site, policy: Policy) -> None:
    """Sets each operand's decision, and the site's reason where the policy leaves the whole product high."""
    for operand in site.operands:
        query = Query(
            module=site.module,
            block=site.block,
            op=site.op,
            gemm=site.gemm,
            operand=operand.role,
            dtype=str(operand.dtype).removeprefix("torch."),
            has_weight=site.has_weight,
            m=_size(site.m),
            n=_size(site.n),
            k=_size(site.k),
            kind=site.kind,
            hints=(size_hint(site.m), size_hint(site.n), size_hint(site.k)),
        )
        operand.decision = policy.decide(query, _Guard(site))
    if all(o.decision is not None and o.decision.treatment.spec is None for o in site.operands):
        labels = dict.fromkeys(o.decision.rule for o in site.operands if o.decision is not None)
        site.reason = "high: " + "; ".join(labels)
        if site.kind is not None:
            site.reason += f"; {site.kind}: {site.kind_reason}"
    else:
        site.reason = _unsplittable(site) or _unrotatable(site) or _unestimable(site)


def _unsplittable(site: Site) -> str | None:
    """Why a product whose policy splits an operand can't be rewritten so, or None."""
    if not any(o.decision is not None and o.decision.treatment.split is not None for o in site.operands):
        return None
    if not same(site.batch, 1):
        return f"a split is of matrices, and this product has a batch of {site.batch}"
    if site.offs is not None:  # tokens are a matrix, and each expert's weight is another
        split = [o for o in site.operands if o.decision is not None and o.decision.treatment.split is not None]
        if any(o not in site.tokens for o in split):
            return "a split is of matrices, and the weights of experts are a batch of them"
        return None
    shapes = [tuple(shape_of(o.base)) for o in site.operands]
    if any(len(shape) != 2 for shape in shapes):
        return f"a split is of matrices, and the operands have the shapes {shapes}"
    return None


def _unrotatable(site: Site) -> str | None:
    """Why a product whose policy has a Hadamard transform can't be rewritten so, or None."""
    treatments = [o.decision.treatment for o in site.operands if o.decision is not None]
    signs = [t.hadamard and f"{t.hadamard} {t.hadamard_size}" for t in treatments]
    if not any(signs):
        return None
    if len(set(signs)) > 1:
        roles = ", ".join(f"{o.role}: {s or 'none'}" for o, s in zip(site.operands, signs, strict=True))
        return f"a Hadamard transform cancels only if both operands have the same, and they have {roles}"
    if site.groups_contracted:
        return "a Hadamard transform along tokens would mix those of different experts"
    shapes = [tuple(shape_of(o.base)) for o in site.operands]
    if any(len(shape) != 2 for shape in shapes) or not same(site.batch, 1):
        return f"a Hadamard transform is of matrices, and the operands have the shapes {shapes}"
    return None


def _unestimable(site: Site) -> str | None:
    """Why a product whose policy estimates the gradient of its weight can't be rewritten so, or None."""
    if not any(o.decision is not None and o.decision.treatment.estimator is not None for o in site.operands):
        return None
    shapes = [tuple(shape_of(o.base)) for o in site.operands]
    if any(len(shape) != 2 for shape in shapes) or not same(site.batch, 1) or site.offs is not None:
        return f"an estimator is of a matrix's gradient, and the operands have the shapes {shapes}"
    return None


class _Guard:
    """Decides a condition on symbolic sizes by adding a guard: it holds for all later calls of this graph."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, condition: sympy.Basic) -> bool:
        for size in (self.site.m, self.site.n, self.site.k):
            if isinstance(size, torch.SymInt):
                try:
                    return bool(size.node.shape_env.evaluate_expr(condition))
                except GuardOnDataDependentSymNode:
                    raise PolicyError(
                        f"can't be decided for the {self.site}: its m, n, k are {self.site.m}, {self.site.n}, "
                        f"{self.site.k}, of which some are known only when the values of a tensor are; put a rule for "
                        "this module, without a condition, before it"
                    ) from None
        raise ValueError(f"{condition} can't be decided: {self.site} has no symbolic size")


def _size(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size
