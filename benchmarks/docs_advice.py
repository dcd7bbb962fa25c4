"""Which preset to take for what, with the measured number behind each line."""

from collections.abc import Callable
from typing import Any

from metis_compile.compare import order, summary
from metis_compile.measure.markdown import markdown_table

__all__ = ["ADVICE", "advice"]

HEADINGS = ("you train", "take", "why", "measured")
SCRATCH = "compare-scratch"
MODELS = {"compare-branch": "GPT", "compare-llama": "Llama", SCRATCH: "Llama"}
Results = dict[str, dict[str, Any]]  # of each folder of results that there is, the JSON


def late(results: Results, *presets: str, folder: str = "compare-branch") -> str:
    """The validation gaps of the last half of a run."""
    rows = {row["arm"]: row["validation_gap"]["mean"] for row in results[folder]["rows"]}
    return f"last half of a {MODELS[folder]}'s run: " + ", ".join(f"`{name}` {rows[name]:+.2f} %" for name in presets)


def whole(results: Results, *presets: str) -> str:
    """The validation gaps from the first step on, of those that were run."""
    if SCRATCH not in results:
        return ""
    rows = {row.arm: row for row in order.ordered(summary.from_json(results[SCRATCH]["rows"]))}
    shown = [f"`{name}` {order.interval(rows[name].validation_gap)}" for name in presets if name in rows]
    return f"a {MODELS[SCRATCH]} from scratch: " + ", ".join(shown) if shown else ""


def work(results: Results, *presets: str) -> str:
    """Floating-point operations beyond full precision's."""
    rows = {row["arm"]: row["cost"]["flops_ratio"] for row in results["compare-branch"]["rows"] if row["cost"]}
    return "operations: " + ", ".join(f"`{name}` {100 * (rows[name] - 1):+.1f} %" for name in presets)


Measured = Callable[[Results], tuple[str, ...]]
ADVICE: list[tuple[str, str, str, Measured]] = [
    (
        "a whole run, every linear in 4 bits",
        "`best`",
        "the least loss given up of all in 4 bits; the default",
        lambda r: (whole(r, "best", "metis", "averis", "nvfp4"), late(r, "best", "metis", "averis", "nvfp4")),
    ),
    (
        "the same, and nothing may be added to the work of a step",
        "`four-over-six`",
        "no product more than `nvfp4`, and a little less loss given up",
        lambda r: (
            whole(r, "four-over-six", "nvfp4"),
            late(r, "four-over-six", "nvfp4"),
            work(r, "best", "four-over-six"),
        ),
    ),
    (
        "a run that began in high precision and ends in 4 bits",
        "`best`",
        "less than a third of what `nvfp4` gives up",
        lambda r: (
            late(r, "best", "metis", "nvfp4"),
            late(r, "best", "metis", "nvfp4", folder="compare-llama"),
        ),
    ),
    (
        "in 8 bits, on what multiplies blocks of 32 with power-of-two scales",
        "`mxfp8`",
        "the format of that hardware",
        lambda r: (whole(r, "mxfp8"), late(r, "mxfp8")),
    ),
    (
        "in 8 bits, with one scale per tensor",
        "`fp8`",
        "nothing added to a step; wider scales did not hurt at these sizes",
        lambda r: (whole(r, "fp8"), late(r, "fp8")),
    ),
    (
        "in 8 bits, and the loss must not move",
        "`metis-fp8`",
        "the split of `best` on an FP8 residual",
        lambda r: (whole(r, "metis-fp8"), late(r, "metis-fp8"), work(r, "metis-fp8")),
    ),
    (
        "to see what a paper's recipe does",
        "its own preset",
        "as published; none of them was the best here",
        lambda r: (late(r, "nvidia", "quartet2", "averis-paper", "metis-paper"),),
    ),
]


def advice(results: Results) -> str:
    """The table."""
    cells = [
        [train, take, why, "; ".join(text for text in measured(results) if text)]
        for train, take, why, measured in ADVICE
    ]
    return markdown_table(HEADINGS, cells, numbers=False)
