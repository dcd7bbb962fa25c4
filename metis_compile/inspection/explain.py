"""Explain what a policy does to a model: one row per matrix product, without training or keeping anything."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from io import StringIO
from typing import TYPE_CHECKING, Any

from metis_compile.cost_model.devices import Device, find_device
from metis_compile.inspection.costs import SiteCost, costs_of, merged
from metis_compile.inspection.dataflow import Dataflow, dataflow
from metis_compile.inspection.dry_run import dry_run
from metis_compile.inspection.expand import expanded, saved_everywhere
from metis_compile.inspection.prediction import Prediction, predict
from metis_compile.inspection.repeats import Cut
from metis_compile.options import one_policy, read_options
from metis_compile.passes.record import CapturedGraph, SavedTensor
from metis_compile.policy import Policy

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from metis_compile.cost_model.kernels import Kernel
    from metis_compile.passes.graph.sites import Operand, Site


@dataclass(frozen=True, kw_only=True)
class ExplainedSite:
    """One matrix product, `[batch, m, k] @ [batch, k, n]`. Sizes that are symbolic are texts."""

    graph: int  # which of the model's graphs; more than one where the graph breaks
    module: str  # dotted path of the module that called it, "" for none
    source: str  # "file.py:12"
    op: str  # what the model wrote: linear, matmul, einsum, ...
    gemm: str  # fprop, dgrad or wgrad
    batch: int | str
    m: int | str
    n: int | str
    k: int | str
    weights: tuple[str, ...]  # names of the parameters in it
    treatment: Mapping[str, str]  # operand role (or lhs/rhs where both have one role) -> "nvfp4 1x16 nearest" or "high"
    recipe: str
    rule: str  # which rule of which file decided
    reason: str | None  # why the product was left alone; None where it was rewritten
    saved: tuple[str, ...]  # tensors kept for this product by the forward
    saved_bytes: int  # several products may share them: see Explanation.saved_bytes for the sum
    saved_each: Mapping[str, int]  # the same tensors, and the bytes of each
    quantized: Mapping[str, str]  # operand role -> its quantization, by name: products that share one have the same
    cost: SiteCost | None = field(default=None, compare=False, repr=False)  # its kernels

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the unquantized product; None where a size is a symbol."""
        sizes = [size for size in (self.batch, self.m, self.n, self.k) if isinstance(size, int)]
        return 2 * math.prod(sizes) if len(sizes) == 4 else None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What `explain` found. Prints as a table."""

    policy: str
    sites: tuple[ExplainedSite, ...]
    unused_rules: tuple[str, ...]  # labels of the rules that decided nothing
    graphs: int
    saved_bytes: int  # all that forward keeps for backward, parameters not counted
    plain_saved_bytes: int = 0  # the same of the model without quantization
    sizes: Mapping[str, int] = field(default_factory=dict)  # sizes that are symbols -> what they were
    rest: Sequence[tuple[Kernel, int]] = field(default=(), compare=False, repr=False)  # of no product; how often
    plain_kernels: Sequence[tuple[Kernel, int]] = field(default=(), compare=False, repr=False)  # without quantization
    full: bool = field(default=False, compare=False)  # prints a row for each product
    device: Device | None = field(default=None, compare=False)  # prints what it costs there

    def cost(self, device: str | Device, **sizes: int) -> Prediction:
        """What a step costs on a device, by site, beside the model without quantization.

        device: "h100", "h200", "b200", "b300", "rtx5090", the path of a file of one, or a Device. sizes: for
        dimensions that were marked as dynamic, by the symbol's name, other sizes than those that were explained.
        Raises DeviceError for a device that is not known, and ValueError for a size that is none.
        """
        return predict(self, find_device(device), sizes)

    def site(self, module: str, gemm: str = "fprop", *, op: str | None = None) -> ExplainedSite:
        """The one product of this module and GEMM role (and op). Raises LookupError naming what there is."""
        found = [s for s in self.sites if s.module == module and s.gemm == gemm and op in (None, s.op)]
        if len(found) == 1:
            return found[0]
        there = sorted({f"{s.module or '<model>'} {s.gemm} {s.op}" for s in self.sites})
        number = "no product" if not found else f"{len(found)} products"
        raise LookupError(
            f"metis: {number} for {module!r} {gemm}{f' {op}' if op else ''}; there are {', '.join(there)}"
        )

    def dataflow(self, module: str | None = None) -> Dataflow:
        """Who shares a quantization, why an activation is saved, and what would have to change so that it is not.

        module: a module's name, for the products in it and below it. Raises LookupError where there are none.
        """
        return dataflow(self.sites, module)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        left_out = ("sites", "full", "device", "rest", "plain_kernels")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        values["sites"] = [asdict(replace(site, cost=None)) for site in self.sites]
        for site in values["sites"]:
            del site["cost"]
        if self.device is not None:
            values["cost"] = self.cost(self.device).to_dict()
        return values

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        Console(file=text, width=None if known else 150).print(self)
        return text.getvalue().rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from metis_compile.inspection.table import by_module, by_product

        yield from by_product(self) if self.full else by_module(self)


def explain(
    model: Callable[..., Any],
    *args: Any,
    policy: str | os.PathLike[str] | Policy | None = None,
    full: bool = False,
    device: str | Device | None = None,
    **kwargs: Any,
) -> Explanation:
    """Shows what backend="metis" with this policy does to `model(*args, **kwargs)`.

    The model is captured anew, past all caches, and its forward runs once, eagerly and unquantized; no backward runs.
    The model, its arguments, and the states of torch's, Python's and NumPy's generators are left as they were. `model`
    may be compiled already. Its tensors may be fake, or on the meta device, which is explained as a CPU: a large model
    takes no memory then. Blocks that are alike and that the policy treats alike are looked at once; `sites` has them
    all.

    full: print a row for each product, in place of one for each module with those of the same treatment in one row.
    device: also print what a step is predicted to cost there, see `Explanation.cost`.
    Raises PolicyError for a mistake in the policy, DeviceError for a device that is not known, RuntimeError where the
    model reads the value of a tensor that is fake or on the meta device, and whatever the model raises.
    """
    config, patches = read_options({} if policy is None else {"policy": policy}, None)
    one_policy(config, "explain")
    found = None if device is None else find_device(device)
    run = dry_run(model, args, kwargs, config, patches, once=True, plain=True)
    return replace(_explanation(config.policy, run.captured.graphs, run.cuts), full=full, device=found)


def _explanation(policy: Policy, graphs: Sequence[CapturedGraph], cuts: Sequence[Cut]) -> Explanation:
    counts = Counter(
        o.decision.index
        for graph in graphs
        for site in graph.sites
        for o in site.operands
        if o.decision is not None and o.decision.index is not None
    )
    costs = [costs_of(graph, cut) for graph, cut in zip(graphs, cuts, strict=True)]
    found = []
    for i, (graph, cut) in enumerate(zip(graphs, cuts, strict=True)):
        priced = zip(graph.sites, costs[i].sites, strict=True)
        found.append(expanded([replace(explained_site(i, s, graph.saved), cost=c) for s, c in priced], cut))
    rest, plain_kernels, sizes = merged(costs)
    return Explanation(
        policy=policy.name,
        sites=tuple(site for sites in found for site in sites),
        unused_rules=tuple(rule.label for rule in policy.unused(counts)),
        graphs=len(graphs),
        saved_bytes=sum(map(saved_everywhere, graphs, cuts)),
        plain_saved_bytes=sum(saved_everywhere(g.plain, c) for g, c in zip(graphs, cuts, strict=True) if g.plain),
        sizes=sizes,
        rest=rest,
        plain_kernels=plain_kernels,
    )


def explained_site(graph: int, site: Site, saved: Sequence[SavedTensor]) -> ExplainedSite:
    """The row of one site, given what its graph saves."""
    names = {name for operand in site.operands for name in operand.kept_as}
    kept = [t for t in saved if t.name in names and not t.is_parameter] if site.gemm != "fprop" else []
    decisions = [o.decision for o in site.operands if o.decision is not None]
    return ExplainedSite(
        graph=graph,
        module=site.module,
        source=site.source,
        op=site.op,
        gemm=site.gemm,
        batch=_plain(site.batch),
        m=_plain(site.m),
        n=_plain(site.n),
        k=_plain(site.k),
        weights=site.weights,
        treatment=_treatments(site.operands),
        recipe=" and ".join(dict.fromkeys(d.recipe for d in decisions)),
        rule="; ".join(dict.fromkeys(d.rule for d in decisions)),
        reason=site.reason,
        saved=tuple(t.name for t in kept),
        saved_bytes=sum(t.nbytes for t in kept),
        saved_each={t.name: t.nbytes for t in kept},
        quantized=_quantized(site.operands),
    )


def _labels(operands: Sequence[Operand]) -> list[str]:
    labels: list[str] = [o.role for o in operands]
    if len(set(labels)) < len(labels):
        labels = [f"{side} {o.role}" for side, o in zip(("lhs", "rhs"), operands, strict=True)]
    return labels


def _quantized(operands: Sequence[Operand]) -> dict[str, str]:
    named = zip(_labels(operands), operands, strict=True)
    return {label: o.quantized.name for label, o in named if o.quantized is not None}


def _treatments(operands: Sequence[Operand]) -> dict[str, str]:
    texts = [str(o.decision.treatment) if o.decision is not None else "high" for o in operands]
    texts = [f"{text} ({o.note})" if o.note else text for text, o in zip(texts, operands, strict=True)]
    return dict(zip(_labels(operands), texts, strict=True))


def _plain(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)
