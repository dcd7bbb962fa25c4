"""What is quantized, as `explain` says it."""

from __future__ import annotations

from collections.abc import Sequence

from metis_compile.html_report.blocks import Block, Fold, Section, Shares, Table
from metis_compile.inspection.explain import Explanation
from metis_compile.inspection.rows import GEMMS, Labels, rows
from metis_compile.inspection.table import size_text
from metis_compile.inspection.totals import flops_by_format

__all__ = ["quantized_section"]


def quantized_section(explanations: Sequence[tuple[str, Explanation]]) -> Section:
    """explanations: a name for each, such as that of an arm or of a stage."""
    lead = (
        "A row per module, or for several of which the same is said: the treatments of activation x weight in fprop, "
        "gradient x weight in dgrad, gradient x activation in wgrad, and what forward keeps for its wgrad."
    )
    if len(explanations) == 1:
        return Section(id="quantized", title="What is quantized", lead=lead, blocks=_blocks(explanations[0][1]))
    folds = [Fold(title=f"{name}: {_short(found)}", blocks=_blocks(found)) for name, found in explanations]
    return Section(id="quantized", title="What is quantized", lead=lead, blocks=folds)


def _short(explanation: Explanation) -> str:
    flops = flops_by_format(explanation.sites)
    total = sum(flops.values()) or 1
    return ", ".join(f"{100 * n / total:.1f} % {name}" for name, n in flops.items()) or "nothing of a known size"


def _blocks(explanation: Explanation) -> list[Block]:
    labels = Labels(explanation.sites)
    found = rows(explanation.sites, labels)
    reasons = {
        reason: number for number, reason in enumerate(dict.fromkeys(r for row in found for r in row.reasons), 1)
    }
    lines = []
    for row in found:
        rules = [rule.split(" (", 1)[0].removeprefix(f"{explanation.policy} ") for rule in row.rules]
        saved = size_text(row.saved_bytes) if row.saved_bytes else f"as {row.shares}" if row.shares else ""
        lines.append(
            (
                row.module or f"({row.op})",
                ", ".join(row.sizes),
                *(row.cells.get(gemm, "") for gemm in GEMMS),
                ", ".join(dict.fromkeys([*rules, *(f"[{reasons[reason]}]" for reason in row.reasons)])),
                f"{row.count} x {saved}" if row.saved_bytes and row.count > 1 else saved,
            )
        )
    unused = ", ".join(rule.removeprefix(f"{explanation.policy} ") for rule in explanation.unused_rules)
    table = Table(
        headings=("module", "m x n x k", *GEMMS, "rule", "saved"),
        rows=lines,
        texts=(0, 2, 3, 4, 5),
        note=f"Matched nothing: {unused}." if unused else "",
    )
    legend = [*labels.legend, *((f"[{number}]", reason) for reason, number in reasons.items())]
    blocks: list[Block] = [
        Shares(
            title="Floating-point operations of matrix products", parts=list(flops_by_format(explanation.sites).items())
        ),
        table,
    ]
    if legend:
        blocks.append(Table(headings=("short", "is"), rows=legend, texts=(0, 1), wraps=(1,)))
    return blocks
