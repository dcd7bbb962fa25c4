"""Who shares a quantization, why a tensor is saved for backward, and what would have to change so that it is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from metis_compile.inspection.table import size_text
from metis_compile.spelling import did_you_mean

if TYPE_CHECKING:
    from metis_compile.inspection.explain import ExplainedSite

ACTIVATION = "activation"


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One operand of one product."""

    module: str
    gemm: str
    operand: str  # as in ExplainedSite.treatment
    shared_by: tuple[
        str, ...
    ]  # the products that read the same quantization, "layers.0.k fprop"; itself not among them
    saved_bytes: int  # of what forward keeps of it for backward; 0 for what is not kept
    saved_because: str
    to_drop: str  # what would have to change so that it is not kept; "" where it is not


@dataclass(frozen=True, kw_only=True)
class Dataflow:
    """What the products of an explanation read. Prints as a Mermaid flowchart."""

    sites: tuple[ExplainedSite, ...] = field(repr=False)  # the products that it is about
    model: tuple[ExplainedSite, ...] = field(repr=False)  # all products of the model

    def of(self, module: str, gemm: str = "fprop", operand: str = ACTIVATION) -> Flow:
        """Of the one product of a module and GEMM role. Raises LookupError naming what there is."""
        found = [s for s in self.sites if s.module == module and s.gemm == gemm]
        if len(found) != 1:
            names = [f"{s.module} {s.gemm}" for s in self.sites]
            near = did_you_mean(f"{module} {gemm}", names)
            shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            number = "no product" if not found else f"{len(found)} products"
            raise LookupError(f"metis: {number} for {module!r} {gemm}{near}; there are {shown}")
        (site,) = found
        if operand not in site.treatment:
            raise LookupError(f"metis: {module!r} {gemm} has the operands {', '.join(site.treatment)}, got {operand!r}")
        return self._flow(site, operand)

    def flows(self) -> tuple[Flow, ...]:
        """Of every operand of every product."""
        return tuple(self._flow(site, operand) for site in self.sites for operand in site.treatment)

    def _flow(self, site: ExplainedSite, operand: str) -> Flow:
        name = site.quantized.get(operand)
        shared = [
            f"{other.module} {other.gemm}"
            for other in self.model
            if other is not site and other.graph == site.graph and name is not None and name in other.quantized.values()
        ]
        saved_bytes, because, drop = self._saved(site, operand)
        return Flow(
            module=site.module,
            gemm=site.gemm,
            operand=operand,
            shared_by=tuple(shared),
            saved_bytes=saved_bytes,
            saved_because=because,
            to_drop=drop,
        )

    def _saved(self, site: ExplainedSite, operand: str) -> tuple[int, str, str]:
        """Bytes, why they are kept, and what would have to change."""
        if "weight" in operand:
            return 0, "not saved: a parameter is kept anyway", ""
        if "gradient" in operand:
            return 0, "not saved: backward makes it", ""
        readers = [s for s in self.model if s.gemm != "fprop" and s.module == site.module and s.op == site.op]
        readers = [s for s in readers if s.graph == site.graph and operand in s.treatment]
        if not readers:
            return 0, "not saved: no product of backward reads it", ""
        names = {name for s in readers for name in s.saved}
        if not names:
            how = "quantizes it anew" if any(operand in s.quantized for s in readers) else "reads it as it is"
            return 0, f"not saved for this product: backward {how}, from what another operator or product keeps", ""
        readers = [s for s in self.model if s.graph == site.graph and names & set(s.saved)]
        kept = {name: nbytes for s in readers for name, nbytes in s.saved_each.items() if name in names}
        who = _listed([f"{s.module or '<model>'} {s.gemm}" for s in readers])
        each = "reads" if len(readers) == 1 else "read"
        drop = [f"freeze {_listed([w for s in readers for w in s.weights])}"] if all(s.weights for s in readers) else []
        drop.append("checkpoint the module, so that backward computes it again")
        if all(operand in s.quantized for s in readers):
            how = f"as {_listed([s.treatment[operand] for s in readers if operand in s.treatment])}"
        else:
            left = [s for s in readers if operand not in s.quantized]
            how = f"in high precision ({_listed([s.reason or s.treatment.get(operand, 'high') for s in left])})"
            drop.insert(0, f"quantize it in {_listed([f'{s.module} {s.gemm}' for s in left])} for fewer bytes")
        return sum(kept.values()), f"{who} {each} it {how}", "; or ".join(drop)

    def mermaid(self) -> str:
        """A Mermaid flowchart: quantizations, what is saved, and the products that read them."""
        lines = ["flowchart LR"]
        products = {id(site): f"p{i}" for i, site in enumerate(self.sites)}
        readers: dict[tuple[int, str], list[tuple[ExplainedSite, str]]] = defaultdict(list)
        for site in self.sites:
            for operand, name in site.quantized.items():
                readers[site.graph, name].append((site, operand))
        lines += [f'    {products[id(s)]}["{_text(f"{s.module or s.op} {s.gemm}")}"]' for s in self.sites]
        for i, reading in enumerate(readers.values()):
            site, operand = reading[0]
            nbytes = sum(b for b in site.saved_each.values()) if self._is_of(operand, site) else 0
            text = f"{operand}: {site.treatment[operand]}"
            shape = f'q{i}[("{_text(text)}, saved {size_text(nbytes)}")]' if nbytes else f'q{i}("{_text(text)}")'
            lines.append(f"    {shape}")
            lines += [f"    q{i} --> {products[id(reader)]}" for reader, _ in reading]
        return "\n".join(lines)

    @staticmethod
    def _is_of(operand: str, site: ExplainedSite) -> bool:
        return site.gemm != "fprop" and ACTIVATION in operand

    def __str__(self) -> str:
        return self.mermaid()


def dataflow(sites: Sequence[ExplainedSite], module: str | None) -> Dataflow:
    """Of the products in a module and below it, or of all. Raises LookupError for a module that has none."""
    chosen = tuple(s for s in sites if module is None or s.module == module or s.module.startswith(f"{module}."))
    if module is not None and not chosen:
        parts = [s.module.split(".") for s in sites]
        there = list(dict.fromkeys(".".join(p[: i + 1]) for p in parts for i in range(len(p)) if p != [""]))
        raise LookupError(f"metis: no product in {module!r}{did_you_mean(module, there)}")
    return Dataflow(sites=chosen, model=tuple(sites))


def _listed(texts: Sequence[str]) -> str:
    found = list(dict.fromkeys(texts))
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"


def _text(text: str) -> str:
    """Fit to stand in quotes in Mermaid."""
    return text.replace('"', "'")
