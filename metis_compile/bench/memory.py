"""Memory of a step: what forward keeps for backward, what a linear's input takes of it, and the peak."""

import ctypes
import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from metis_compile.bench.candidate import AUTOCAST, PLAIN, autocast, check_policies, name_of, trainer
from metis_compile.bench.plot import bars
from metis_compile.bench.report import Report
from metis_compile.bench.runner import Options, Task, run_tasks
from metis_compile.bench.size import size_text
from metis_compile.bench.turns import WARM_UP, batch
from metis_compile.compare.run_config import RunConfig
from metis_compile.inspection.explain import ExplainedSite, explain
from metis_compile.measure.ratio import Ratio
from metis_compile.train.report import mebibytes
from metis_compile.train.settings import Settings

__all__ = ["HEADINGS", "bench_memory", "cells", "input_bits", "measure"]

HEADINGS = ("policy", "saved for backward", "bits an element of a linear's input", "peak above what was there")

# glibc hands large blocks back to the system when they are freed only as long as this threshold does not grow.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(candidate: str, settings: Settings, stepped: Callable[[int], None]) -> dict[str, Any]:
    """Worker: bytes, of one step after those that warm up; bits of an element, from the rewritten graph."""
    made = trainer(candidate, settings)
    for step in range(WARM_UP):
        made.gradients(*batch(settings, step))
        made.update(step)
        stepped(step + 1)
    tokens, targets = batch(settings, WARM_UP)
    saved = made.saved_bytes(tokens)
    peak = peak_bytes(lambda: made.gradients(tokens, targets), settings.device)
    policy = PLAIN if candidate == AUTOCAST else RunConfig(text=candidate).policy
    with made.autocast():
        sites = explain(made.model, tokens, policy=policy).sites
    return {"saved_bytes": saved, "peak_bytes": peak, "input_bits": input_bits(sites)}


def input_bits(sites: Sequence[ExplainedSite]) -> float | None:
    """Bits an element, on average, of what the blocks' wgrads read of linears' inputs, as forward keeps it.

    A tensor that several linears read counts once; an input that is made again from something else that is kept,
    such as attention's own output, does not count; nor do the thin factors of a split. None where nothing counts.
    """
    kept = {
        site.saved: (8 * site.saved_bytes, site.n * site.k)
        for site in sites
        if site.gemm == "wgrad" and site.op == "linear" and site.module.startswith("blocks.") and site.saved
        if isinstance(site.n, int) and isinstance(site.k, int)
    }
    bits, elements = (sum(column) for column in zip(*kept.values(), strict=True)) if kept else (0, 0)
    return bits / elements if elements else None


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """How far memory rises above where it was while ``run`` runs: the device's, or the process's resident memory.

    None on a CPU whose system is not Linux: elsewhere the peak of a process can't be started anew after compiling.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not CLEAR.exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc: what was freed goes back to the system
    if trim is not None:
        trim(0)
    CLEAR.write_text("5")  # the peak is now what is resident now
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def bench_memory(policies: Sequence[str], settings: Settings, options: Options, console: Console) -> Report:
    """Each policy and plain Inductor, in turn, a process each; beside float32, under bfloat16 autocast too.

    What forward keeps is the same in every round; the peak is what is measured again.
    """
    candidates = list(dict.fromkeys([PLAIN, *check_policies(policies)]))
    candidates += autocast(settings, console)
    tasks = {
        (text, i): Task(
            label=f"{name_of(text)} {i}", kind="memory", settings=settings, candidate=text, environment=MALLOC
        )
        for i in range(options.rounds)
        for text in candidates[:: 1 if i % 2 == 0 else -1]
    }
    measured = run_tasks(list(tasks.values()), options, console)
    rows = []
    for text in candidates:
        found = {i: measured.results.get(tasks[text, i].label) for i in range(options.rounds)}
        there = {i: result for i, result in found.items() if result is not None}
        if there:
            about = {"policy": name_of(text), "settings": asdict(settings)}
            first = next(iter(there.values()))
            peaks = {"rounds": list(there), "peaks": [result["peak_bytes"] for result in there.values()]}
            rows.append(about | {what: first[what] for what in ("saved_bytes", "input_bits")} | peaks)
    numbers = {"rows": rows}
    for row in rows:
        peak = peak_ratio(row, numbers)
        row |= {"saved_ratio": saved_ratio(row, numbers), "peak_ratio": peak and asdict(peak)}

    def draw(figure: Any) -> None:
        names = [row["policy"] for row in rows]
        left, right = figure.subplots(1, 2)
        series: dict[str, list[float | Ratio | None]] = {
            "saved for backward": [saved_ratio(row, numbers) for row in rows],
            "peak of a step": [peak_ratio(row, numbers) for row in rows],
        }
        bars(left, names, series, unit="bytes / plain Inductor's", line=1)
        bits = {"": [row["input_bits"] for row in rows]}
        bars(right, names, bits, unit="bits an element of a linear's input", line=None)

    return Report(
        name="memory",
        title=f"memory of forward and backward, {size_text(settings)}: median of {options.rounds} (quartiles)",
        headings=HEADINGS,
        cells=cells(numbers),
        numbers=numbers,
        draw=draw,
        measured=measured,
    )


def plain_row(numbers: dict[str, Any]) -> dict[str, Any] | None:
    """Plain Inductor's, unless it failed."""
    return next((row for row in numbers["rows"] if row["policy"] == PLAIN), None)


def saved_ratio(row: dict[str, Any], numbers: dict[str, Any]) -> float | None:
    """What forward keeps over plain Inductor's."""
    plain = plain_row(numbers)
    return None if plain is None else float(row["saved_bytes"] / plain["saved_bytes"])


def peaks_of(row: dict[str, Any]) -> dict[int, int]:
    """A row's peaks by round; a report of one round may hold ``peak_bytes`` in their place."""
    peaks = row.get("peaks", [row.get("peak_bytes")])
    return {i: peak for i, peak in zip(row.get("rounds", [0]), peaks, strict=True) if peak is not None}


def peak_ratio(row: dict[str, Any], numbers: dict[str, Any]) -> Ratio | None:
    """The peak over plain Inductor's of the same round; None where there is none."""
    plain = plain_row(numbers)
    mine, theirs = peaks_of(row), {} if plain is None else peaks_of(plain)
    both = sorted(mine.keys() & theirs.keys())
    return Ratio.of([mine[i] for i in both], [theirs[i] for i in both]) if both else None


def cells(numbers: dict[str, Any]) -> list[list[str]]:
    """The table's, from the bytes in the report's JSON."""
    made = []
    for row in numbers["rows"]:
        share, peak, peaks = saved_ratio(row, numbers), peak_ratio(row, numbers), list(peaks_of(row).values())
        made.append(
            [
                row["policy"],
                mebibytes(row["saved_bytes"]) + ("" if share is None else f", {share:.2f}x"),
                "-" if row["input_bits"] is None else f"{row['input_bits']:.2f}",
                (mebibytes(round(median(peaks))) if peaks else "-") + ("" if peak is None else f", {peak}"),
            ]
        )
    return made
