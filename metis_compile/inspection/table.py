"""How an explanation prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from metis_compile.inspection.cost_table import cost_table
from metis_compile.inspection.rows import GEMMS, Labels, rows
from metis_compile.inspection.totals import flops_by_format

if TYPE_CHECKING:
    from metis_compile.inspection.explain import Explanation


def by_product(explanation: Explanation) -> Iterator[Any]:
    """A row for each product."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=title(explanation), title_justify="left")
    for name in ("module", "source", "gemm", "m x n x k", "operands", "rule, or why it was left", "saved"):
        table.add_column(name, overflow="fold")
    for site in explanation.sites:
        size = f"{site.m} x {site.n} x {site.k}" if site.k else ""
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
    yield from footer(explanation)
    if explanation.device is not None:
        yield from cost_table(explanation, explanation.cost(explanation.device))


def by_module(explanation: Explanation) -> Iterator[Any]:
    """A row for each module, with its three products beside each other; like modules are one row."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    labels = Labels(explanation.sites)
    found = rows(explanation.sites, labels)
    notes: dict[str, int] = {}
    table = Table(box=SIMPLE_HEAD, title=title(explanation), title_justify="left")
    for name in ("module", "m x n x k", *GEMMS, "rule", "saved"):
        table.add_column(name, overflow="fold")
    for row in found:
        for reason in row.reasons:
            notes.setdefault(reason, len(notes) + 1)
        marks = [*(_short(rule, explanation.policy) for rule in row.rules), *(f"[{notes[r]}]" for r in row.reasons)]
        saved = size_text(row.saved_bytes) if row.saved_bytes else ""
        table.add_row(
            row.module or f"({row.op})",
            ", ".join(row.sizes),
            *(row.cells.get(gemm, "") for gemm in GEMMS),
            Text(", ".join(dict.fromkeys(marks))),
            f"{row.count} x {saved}"
            if saved and row.count > 1
            else saved or (f"as {row.shares}" if row.shares else ""),
        )
    yield table
    for label, text in labels.legend:
        yield Text(f"{label} = {text}")
    for reason, number in notes.items():
        yield Text(f"[{number}] {reason}")
    if any(row.shares for row in found):
        yield 'saved "as ...": reads the input of that module as it was quantized there'
    yield totals(explanation)
    yield from footer(explanation)
    if explanation.device is not None:
        yield from cost_table(explanation, explanation.cost(explanation.device), found)


def totals(explanation: Explanation) -> str:
    """What share of the products' floating-point operations has which format."""
    flops = flops_by_format(explanation.sites)
    total = sum(flops.values())
    if not total:
        return "matrix products: none of a known size"
    shares = ", ".join(f"{100 * n / total:.1f} % {name}" for name, n in flops.items())
    power = min(max((len(str(total)) - 1) // 3, 0), 6)
    return f"matrix products: {total / 1000**power:.3g} {'kMGTPE'[power - 1] if power else ''}FLOP, {shares}"


def _short(rule: str, policy: str) -> str:
    """ "run.toml rule 2 (module=*.lm_head)" as "rule 2" in a table about run.toml."""
    return rule.split(" (", 1)[0].removeprefix(f"{policy} ")


def size_text(nbytes: int) -> str:
    """A number of bytes, to read."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            break
        nbytes /= 1024  # type: ignore[assignment]
    return f"{nbytes:,} {unit}" if unit == "bytes" else f"{nbytes:,.1f} {unit}"


def title(explanation: Explanation) -> str:
    done = sum(s.reason is None for s in explanation.sites)
    graphs = "1 graph" if explanation.graphs == 1 else f"{explanation.graphs} graphs"
    return f"policy {explanation.policy}: {done} of {len(explanation.sites)} products rewritten, in {graphs}"


def footer(explanation: Explanation) -> Iterator[str]:
    if not explanation.graphs:
        yield "nothing was compiled: Dynamo left all of it to run eagerly; TORCH_LOGS=graph_breaks says why"
    yield f"saved for backward: {explanation.saved_bytes:,} bytes, parameters not counted"
    for rule in explanation.unused_rules:
        yield f"matched nothing: {rule}"
