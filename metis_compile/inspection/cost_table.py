"""How a predicted cost prints: a row for each module or product, the rest of the step, and the total."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from metis_compile.inspection.rows import GEMMS, Row

if TYPE_CHECKING:
    from metis_compile.inspection.explain import Explanation
    from metis_compile.inspection.prediction import Prediction, SitePrediction

_COLUMNS = {"quantization": "quantize", "tails": "tails", "bases": "bases"}
_REST = {
    "attention": "attention, as one operator",
    "other": "all else: norms, activations, sums",
    "product": "other products",
}


def cost_table(explanation: Explanation, predicted: Prediction, rows: Sequence[Row] | None = None) -> Iterator[Any]:
    """rows: those of the table of modules; None for a row for each product."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    base = predicted.baseline
    title = f"predicted for {predicted.device.name}, forward and backward"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    gemms = GEMMS if rows is not None else ("product",)
    for name in ("module", base, *gemms, *_COLUMNS.values(), "all", f"of {base}"):
        table.add_column(name, overflow="fold", justify="left" if name == "module" else "right")
    small = 0
    by_site = {id(s.site): s for s in predicted.sites}
    groups = [(r.module or f"({r.op})", [by_site[id(s)] for s in r.sites]) for r in rows or ()]
    if rows is None:
        groups = [(f"{s.site.module or f'({s.site.op})'} {s.site.gemm}", [s]) for s in predicted.sites]
    for module, sites in groups:
        too_small = sum(s.too_small for s in sites)
        small += too_small
        plain, spent = sum(s.plain for s in sites), sum(s.total for s in sites)
        table.add_row(
            module,
            time_text(plain),
            *(_cell(sites, "product", gemm if rows is not None else None) for gemm in gemms),
            *(_cell(sites, column) for column in _COLUMNS),
            time_text(spent),
            (f"{spent / plain:.2f}x" if plain else "") + (" *" if too_small else ""),
        )
    for kind, name in _REST.items():
        before, now = predicted.plain.get(kind, 0.0), predicted.rest.get(kind, 0.0)
        if now or (before and kind != "product"):
            table.add_row(name, time_text(before), *[""] * (len(gemms) + 3), time_text(now), "")
    yield table
    if small:
        yield f"* {small} of {len(predicted.sites)} products are too small to gain: they take longer quantized"
    if predicted.device.autocast and any(
        k.unit == "float32" and k.kind == "product" for k, _ in explanation.plain_kernels
    ):
        yield "float32 of the model is taken for bfloat16, as under autocast"
    plain = predicted.plain_saved_bytes
    if plain:
        less = 100 * (predicted.saved_bytes / plain - 1)
        yield f"saved for backward: {less:+.0f} % of {plain:,} bytes without quantization"
    yield (
        f"predicted step {predicted.ratio:.2f}x of {base}: {time_text(predicted.seconds)}, "
        f"{time_text(predicted.plain_seconds)} in {base}"
    )


def _cell(sites: Sequence[SitePrediction], column: str, gemm: str | None = None) -> str:
    seconds = sum(s.seconds[column] for s in sites if gemm in (None, s.site.gemm))
    return time_text(seconds) if seconds else ""


def time_text(seconds: float) -> str:
    """A time, to read."""
    for unit, length in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
