"""Whether it is on, at a glance: what a compile did, as one line of log and as `metis_compile.summary(compiled)`."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from metis_compile.compat import cache_dir, size_hint
from metis_compile.policy import Policy
from metis_compile.reporting.saved import SavedBytes

if TYPE_CHECKING:
    from metis_compile.passes.graph.sites import GraphInputs, Site

log = logging.getLogger("metis_compile")
HIGH = "high"
_NAMED = 3  # modules that a line of log names

# first parameter of a graph -> what was seen of the graphs that have it as their first
_SEEN: WeakIdKeyDictionary = WeakIdKeyDictionary()
_WARNED: set[tuple[str, str]] = set()  # policy, reason
_COMPILED: ContextVar[list[Summary] | None] = ContextVar("metis_compiled", default=None)


@dataclass(frozen=True, kw_only=True)
class Product:
    """One matrix product of a compiled graph."""

    module: str
    op: str
    gemm: str  # fprop, dgrad or wgrad
    has_weight: bool
    format: str  # "nvfp4", "fp8 x fp8_e5m2" of two operands, "high" where it was left alone
    flops: int  # of the unquantized product; where a size is symbolic, of the size that it was compiled with
    reason: str | None  # why it was left alone
    by_rule: bool  # whether a rule of the policy says that it is left alone


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was compiled of a model: each graph once, whatever the number of blocks that run it."""

    policy: str
    products: tuple[Product, ...]
    saved_bytes: int = 0  # that forward keeps for backward, parameters not counted; 0 where that was not seen
    plain_saved_bytes: int = 0  # that it would keep without quantization

    @property
    def linears(self) -> int:
        """How many modules have a product with a weight in their forward."""
        return len(self._linears())

    @property
    def quantized_linears(self) -> int:
        """In how many of them every such product is quantized, backward included."""
        return sum(self._linears().values())

    @property
    def high(self) -> tuple[str, ...]:
        """Modules that have a weight and a product that was left in high precision."""
        return tuple(module for module, quantized in self._linears().items() if not quantized)

    @property
    def flops(self) -> dict[str, int]:
        """Format -> floating-point operations, most first."""
        counts: Counter[str] = Counter()
        for product in self.products:
            counts[product.format] += product.flops
        return {name: n for name, n in counts.most_common() if n}

    @property
    def unruled(self) -> dict[str, int]:
        """Why products were left alone although no rule says so -> their floating-point operations, most first."""
        counts: Counter[str] = Counter()
        for product in self.products:
            if product.reason is not None and not product.by_rule:
                counts[product.reason] += product.flops
        return dict(counts.most_common())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self) | {
            "linears": self.linears,
            "quantized_linears": self.quantized_linears,
            "flops": self.flops,
        }

    def _linears(self) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for product in self.products:
            if product.has_weight:
                found[product.module] = found.get(product.module, True) and product.format != HIGH
        return found

    def __str__(self) -> str:
        total = sum(self.flops.values()) or 1
        shares = ", ".join(f"{100 * n / total:.1f} % in {k.upper()}" for k, n in self.flops.items() if k != HIGH)
        line = f"policy {self.policy}: {self.quantized_linears} of {self.linears} linears"
        line += f"; of matmul FLOPs {shares or 'none quantized'}"
        if self.high:
            more = f" and {len(self.high) - _NAMED} more" if len(self.high) > _NAMED else ""
            line += f"; {', '.join(name or '<model>' for name in self.high[:_NAMED])}{more} high"
        if self.plain_saved_bytes:
            line += f"; saved for backward {100 * (self.saved_bytes / self.plain_saved_bytes - 1):+.0f} %"
        return line


def summary(model: nn.Module) -> Summary:
    """What backend="metis" did to the compiled parts of `model`, also where their code came from a cache.

    model: compiled, with compiled submodules, or the module that was compiled, after its first call. Graphs without
    parameters are not in it. Under a schedule it is of the stage that the last call ran. Raises TypeError for what is
    no module, and LookupError where nothing was compiled yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"metis: a summary is of an nn.Module, got {type(model).__name__}: give the compiled module")
    owners = [*model.parameters(), *model.modules()]
    graphs = list({id(graph): graph for owner in owners for graph in _SEEN.get(owner, ())}.values())
    if not graphs:
        raise LookupError(
            'metis: nothing of this model was compiled with backend="metis": call it first (or its code came from a '
            "cache that was copied without its metis folder: metis_compile.explain shows what is done)"
        )
    return Summary(
        policy=", ".join(dict.fromkeys(graph.policy for graph in graphs)),
        products=tuple(product for graph in graphs for product in graph.products),
        saved_bytes=sum(graph.saved_bytes for graph in graphs),
        plain_saved_bytes=sum(graph.plain_saved_bytes for graph in graphs),
    )


@contextmanager
def compiled() -> Iterator[list[Summary]]:
    """Collects what is compiled inside the block."""
    found: list[Summary] = []
    token = _COMPILED.set(found)
    try:
        yield found
    finally:
        _COMPILED.reset(token)


def show(stages: Sequence[Sequence[Summary]], index: int) -> None:
    """Has `summary` give one of several compiles of the same graph, where it gives another of them."""
    of_any = {id(graph) for stage in stages for graph in stage}
    for owner, graphs in list(_SEEN.items()):
        others = [graph for graph in graphs if id(graph) not in of_any]
        if len(others) < len(graphs):
            _SEEN[owner] = [*others, *stages[index]]


def clear() -> None:
    """Forgets all summaries, as torch.compiler.reset() forgets every compiled graph."""
    _SEEN.clear()
    _WARNED.clear()


class SummaryRecord:
    """Sees the products of one graph as it is compiled, and keeps what was seen beside the code in torch's cache.

    On a hit no pass runs, and what was kept is read.
    """

    def __init__(self, gm: fx.GraphModule, uuid: str, policy: Policy) -> None:
        self.policy = policy
        text = [
            uuid,
            str(torch.is_grad_enabled()),
            *(str(_described(n.meta.get("example_value"))) for n in gm.graph.find_nodes(op="placeholder")),
        ]
        name = hashlib.sha256("\n".join(text).encode()).hexdigest()
        self._file = Path(cache_dir()) / "metis" / f"{name}.json"
        self._products: list[Product] = []
        self._saved = SavedBytes()
        self._has_run = False

    def before(self, graph: fx.Graph, inputs: GraphInputs) -> None:
        self._saved.before(graph)

    def nested(self, sites: list[Site]) -> None:
        self._products += [_product(site) for site in sites]

    def after(self, graph: fx.Graph, sites: list[Site], parameters: dict[str, str], state: Sequence[str]) -> None:
        self._has_run = True
        self._products = [*(_product(site) for site in sites), *self._products]
        self._saved.after(graph, sites, parameters, state)

    def parted(self, graph: fx.Graph) -> None:
        """A graph that came out of the partitioner, before anything lowers it."""
        self._saved.forward(graph)

    def compiling(self, inner_compile: Callable[..., Any]) -> Callable[..., Any]:
        """What compiles a graph in place of Inductor, which would show it to `parted`."""

        def compiled(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
            self.parted(gm.graph)
            return inner_compile(gm, example_inputs, **kwargs)

        return compiled

    def finish(self, owners: Iterable[object]) -> None:
        """After the compile. owners: what tells whose graph it is: its first parameter, the module that was compiled.

        Under FSDP parameters are other tensors while a model computes than between its steps.
        """
        kept = self._kept() if not self._has_run or self._saved.counted is None else {}
        if not self._has_run:
            self._products = [Product(**values) for values in kept.get("products", ())]
        if not self._products:
            return
        saved, plain = self._saved.counted or kept.get("saved") or (0, 0)
        if self._has_run:
            products = [asdict(product) for product in self._products]
            _write(self._file, {"products": products, "saved": [saved, plain]})
        found = Summary(
            policy=self.policy.name, products=tuple(self._products), saved_bytes=saved, plain_saved_bytes=plain
        )
        for owner in owners:
            _SEEN[owner] = [*_others(_SEEN.get(owner, ()), found), found]
        if (compiled := _COMPILED.get()) is not None:
            compiled.append(found)
        _report(found)

    def _kept(self) -> dict[str, Any]:
        """What was written when the code in the cache was compiled."""
        return json.loads(self._file.read_text()) if self._file.exists() else {}


def _others(known: Iterable[Summary], found: Summary) -> list[Summary]:
    """Those of other graphs than `found`, which may be of one that was compiled before for other sizes."""
    modules = {(p.module, p.op) for p in found.products if p.gemm == "fprop"}
    return [s for s in known if not modules & {(p.module, p.op) for p in s.products if p.gemm == "fprop"}]


def _product(site: Site) -> Product:
    decisions = [o.decision for o in site.operands if o.decision is not None]
    formats = {d.treatment.format for d in decisions}
    flops = 2
    for size in (site.batch, site.m, site.n, site.k):
        flops *= size_hint(size)
    return Product(
        module=site.module,
        op=site.op,
        gemm=site.gemm,
        has_weight=site.has_weight,
        format=HIGH if site.reason is not None else " x ".join(sorted(formats)),
        flops=flops,
        reason=site.reason,
        by_rule=bool(decisions) and all(d.index is not None and d.treatment.format == HIGH for d in decisions),
    )


def _described(value: Any) -> object:
    return (value.shape, value.dtype, value.requires_grad) if isinstance(value, Tensor) else value


def _write(file: Path, values: Any) -> None:
    """All of it or nothing; a cache that can't be written to is torch's own to complain of."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as written:
            json.dump(values, written)
        os.replace(written.name, file)
    except OSError as error:
        log.info("metis: no summary is kept beside the compiled code: %s", error)


def _report(found: Summary) -> None:
    log.info("metis: %s", found)
    total = sum(found.flops.values())
    unruled = found.unruled
    if not total or 2 * sum(unruled.values()) <= total:
        return
    reason = next(iter(unruled))
    modules = list(dict.fromkeys(p.module or "<model>" for p in found.products if p.reason == reason))
    more = f" and {len(modules) - _NAMED} more" if len(modules) > _NAMED else ""
    text = (
        f"metis: policy {found.policy} leaves {100 * sum(unruled.values()) / total:.0f} % of the matmul FLOPs in high "
        f"precision though no rule says so; mostly: {reason} ({', '.join(modules[:_NAMED])}{more}). "
        "metis_compile.explain shows each product"
    )
    if (found.policy, reason) not in _WARNED:
        _WARNED.add((found.policy, reason))
        log.warning("%s", text)
