"""The rows of an explanation: one for each module, those of like modules in one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metis_compile.inspection.explain import ExplainedSite

GEMMS = ("fprop", "dgrad", "wgrad")
_ORDER = {"activation": 0, "gradient": 0, "weight": 2}  # of roles in a product, but for wgrad's activation


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is said of one module, or of several of which the same is said."""

    module: str  # "layers.{0..31}.mlp.up" of several
    op: str
    count: int = 1  # how many modules
    sizes: tuple[str, ...]  # of its fprops (of its backward products, where it has none)
    cells: Mapping[str, str] = field(default_factory=dict)  # GEMM role -> "nvfp4.a x nvfp4.b"
    rules: tuple[str, ...] = ()  # labels of the rules that decided
    reasons: tuple[str, ...] = ()  # why products were left alone
    shares: str = ""  # the module whose quantized input it reads
    saved_bytes: int = 0  # of one module; what it shares is counted where it is first read
    sites: tuple[ExplainedSite, ...] = ()  # the products, of all its modules

    @property
    def said(self) -> tuple[object, ...]:
        """All but the module's name and its products."""
        cells = tuple(sorted(self.cells.items()))
        return self.op, self.sizes, cells, self.rules, self.reasons, self.shares, self.saved_bytes


class Labels:
    """Short labels of treatments: the format's name, with a letter where several treatments have that format."""

    def __init__(self, sites: Sequence[ExplainedSite]) -> None:
        texts = dict.fromkeys(text for s in sites if s.reason is None for text in s.treatment.values())
        by_format: dict[str, list[str]] = defaultdict(list)
        for text in texts:
            by_format[text.split(" ", 1)[0].rstrip(",")].append(text)
        self.of: dict[str, str] = {"high": "high"}
        for name, alike in by_format.items():
            if name != "high":
                for i, text in enumerate(alike):
                    self.of[text] = name if len(alike) == 1 else f"{name}.{_letters(i)}"

    @property
    def legend(self) -> list[tuple[str, str]]:
        return [(label, text) for text, label in self.of.items() if text != label]


def rows(sites: Sequence[ExplainedSite], labels: Labels) -> list[Row]:
    """In the order of the model's forward."""
    modules: dict[tuple[int, str, str], list[ExplainedSite]] = defaultdict(list)
    for site in sites:
        modules[site.graph, site.module, site.op].append(site)
    first_reader: dict[tuple[int, str], str] = {}
    counted: set[tuple[int, str]] = set()
    found = []
    for (graph, module, op), products in modules.items():
        found.append(_row(module, op, products, labels))
        for name in {s.quantized["activation"] for s in products if s.gemm == "fprop" and "activation" in s.quantized}:
            first = first_reader.setdefault((graph, name), module)
            if first != module:
                found[-1] = replace(found[-1], shares=_beside(first, module))
        saved = 0
        for site in products:
            for name, nbytes in site.saved_each.items():
                saved += nbytes if (graph, name) not in counted else 0
                counted.add((graph, name))
        found[-1] = replace(found[-1], saved_bytes=saved)
    return _collapsed(found)


def _row(module: str, op: str, products: Sequence[ExplainedSite], labels: Labels) -> Row:
    fprops = [s for s in products if s.gemm == "fprop"]
    cells = {}
    for gemm in GEMMS:
        texts = [_cell(s, labels) for s in products if s.gemm == gemm]
        distinct = list(dict.fromkeys(texts))
        if distinct:
            cells[gemm] = ", ".join(f"{n} of {t}" if (n := texts.count(t)) > 1 else t for t in distinct)
    return Row(
        module=module,
        op=op,
        sizes=tuple(dict.fromkeys(_size(s) for s in fprops or products)),
        cells=cells,
        rules=tuple(dict.fromkeys(r for s in products if s.reason is None for r in s.rule.split("; ") if r)),
        reasons=tuple(dict.fromkeys(s.reason for s in products if s.reason is not None)),
        sites=tuple(products),
    )


def _cell(site: ExplainedSite, labels: Labels) -> str:
    if site.reason is not None:
        return "high"
    order = {**_ORDER, "activation": 1} if site.gemm == "wgrad" else _ORDER
    roles = sorted(site.treatment, key=lambda role: order.get(role, 0))
    return " x ".join(labels.of[site.treatment[role]] for role in roles)


def _size(site: ExplainedSite) -> str:
    if not site.k:
        return ""
    size = f"{site.m} x {site.n} x {site.k}"
    return size if site.batch == 1 else f"{site.batch} x {size}"


def _beside(first: str, module: str) -> str:
    """The name of `first`, without what it has in common with `module`."""
    parts, others = first.split("."), module.split(".")
    common = 0
    while common < min(len(parts), len(others)) - 1 and parts[common] == others[common]:
        common += 1
    return ".".join(parts[common:])


def _collapsed(found: Sequence[Row]) -> list[Row]:
    """Rows whose modules differ in one number, and of which the same is said, as one row."""
    current = list(found)
    deepest = max((row.module.count(".") for row in current), default=0) + 1
    for position in range(deepest):
        groups: dict[object, list[Row]] = {}
        for i, row in enumerate(current):
            parts = row.module.split(".")
            numbered = position < len(parts) and parts[position].isdigit()
            key = (*parts[:position], None, *parts[position + 1 :], row.said) if numbered else i
            groups.setdefault(key, []).append(row)
        current = [_one(group, position) for group in groups.values()]
    return current


def _one(group: Sequence[Row], position: int) -> Row:
    if len(group) == 1:
        return group[0]
    parts = group[0].module.split(".")
    parts[position] = _braces([int(row.module.split(".")[position]) for row in group])
    sites = tuple(site for row in group for site in row.sites)
    return replace(group[0], module=".".join(parts), count=sum(row.count for row in group), sites=sites)


def _braces(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as "{0..2,5}"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = (f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
    return "{" + ",".join(texts) + "}" if len(set(numbers)) > 1 else str(numbers[0])


def _letters(i: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)
