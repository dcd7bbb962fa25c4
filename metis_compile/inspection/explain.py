"""Explain what a policy does to a model: one row per matrix product, without training or keeping anything."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from metis_compile.inspection.dry_run import dry_run
from metis_compile.options import read_options
from metis_compile.passes.record import CapturedGraph, SavedTensor
from metis_compile.policy import Policy

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

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


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What `explain` found. Prints as a table."""

    policy: str
    sites: tuple[ExplainedSite, ...]
    unused_rules: tuple[str, ...]  # labels of the rules that decided nothing
    graphs: int
    saved_bytes: int  # all that forward keeps for backward, parameters not counted

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        Console(file=text, width=None if known else 150).print(self)
        return text.getvalue().rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, title=f"policy {self.policy}: {self._counts()}", title_justify="left")
        for name in ("module", "source", "gemm", "m x n x k", "operands", "rule, or why it was left", "saved"):
            table.add_column(name, overflow="fold")
        for site in self.sites:
            size = f"{site.m} x {site.n} x {site.k}"
            table.add_row(
                site.module or f"({site.op})",
                site.source,
                site.gemm,
                size if site.batch == 1 else f"{site.batch} x {size}",
                "\n".join(f"{role}: {text}" for role, text in site.treatment.items()) if site.reason is None else "",
                site.reason or site.rule,
                f"{site.saved_bytes:,} bytes" if site.saved else "",
            )
        yield table
        yield f"saved for backward: {self.saved_bytes:,} bytes, parameters not counted"
        for rule in self.unused_rules:
            yield f"matched nothing: {rule}"

    def _counts(self) -> str:
        done = sum(s.reason is None for s in self.sites)
        graphs = "1 graph" if self.graphs == 1 else f"{self.graphs} graphs"
        return f"{done} of {len(self.sites)} products rewritten, in {graphs}"


def explain(
    model: Callable[..., Any],
    *args: Any,
    policy: str | os.PathLike[str] | Policy | None = None,
    **kwargs: Any,
) -> Explanation:
    """Shows what backend="metis" with this policy does to `model(*args, **kwargs)`.

    The model is captured anew, past all caches, and its forward runs once, eagerly; no backward runs. Buffers,
    gradients and the states of torch's, Python's and NumPy's generators are left as they were. `model` may be compiled
    already.
    Raises PolicyError for a mistake in the policy, and whatever the model raises.
    """
    config, patches = read_options({} if policy is None else {"policy": policy}, None)
    captured = dry_run(model, args, kwargs, config, patches).captured
    return _explanation(config.policy, captured.graphs)


def _explanation(policy: Policy, graphs: Sequence[CapturedGraph]) -> Explanation:
    counts = Counter(
        o.decision.index
        for graph in graphs
        for site in graph.sites
        for o in site.operands
        if o.decision is not None and o.decision.index is not None
    )
    return Explanation(
        policy=policy.name,
        sites=tuple(explained_site(i, s, graph.saved) for i, graph in enumerate(graphs) for s in graph.sites),
        unused_rules=tuple(rule.label for rule in policy.unused(counts)),
        graphs=len(graphs),
        saved_bytes=sum(g.saved_bytes for g in graphs),
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
    )


def _treatments(operands: Sequence[Operand]) -> dict[str, str]:
    labels: list[str] = [o.role for o in operands]
    if len(set(labels)) < len(labels):
        labels = [f"{side} {o.role}" for side, o in zip(("lhs", "rhs"), operands, strict=True)]
    texts = [str(o.decision.treatment) if o.decision is not None else "high" for o in operands]
    texts = [f"{text} ({o.note})" if o.note else text for text, o in zip(texts, operands, strict=True)]
    return dict(zip(labels, texts, strict=True))


def _plain(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)
