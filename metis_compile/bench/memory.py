"""Memory of a step: what forward keeps for backward, what a linear's input takes of it, and the peak."""

import ctypes
import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from metis_compile.bench.contender import AUTOCAST, PLAIN, check_policies, learner, name_of
from metis_compile.bench.plot import bars
from metis_compile.bench.report import Report
from metis_compile.bench.runner import Options, Task, run_tasks
from metis_compile.bench.size import size_text
from metis_compile.bench.turns import WARM_UP, batch
from metis_compile.compare.arm import Arm
from metis_compile.explanation import ExplainedSite, explain
from metis_compile.train.report import mebibytes
from metis_compile.train.report import ratio as over
from metis_compile.train.settings import Settings

__all__ = ["bench_memory", "input_bits", "measure"]

# glibc hands large blocks back to the system when they are freed only as long as this threshold does not grow.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(contender: str, settings: Settings, stepped: Callable[[int], None]) -> dict[str, Any]:
    """Worker: bytes, of one step after those that warm up; bits of an element, from the rewritten graph."""
    made = learner(contender, settings)
    for step in range(WARM_UP):
        made.gradients(*batch(settings, step))
        made.update(step)
        stepped(step + 1)
    tokens, targets = batch(settings, WARM_UP)
    saved = made.saved_bytes(tokens)
    peak = peak_bytes(lambda: made.gradients(tokens, targets), settings.device)
    policy = PLAIN if contender == AUTOCAST else Arm(text=contender).policy
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
    """Each policy and plain Inductor, a process each; beside float32, under bfloat16 autocast too."""
    contenders = list(dict.fromkeys([PLAIN, *check_policies(policies)]))
    contenders += [AUTOCAST] * (settings.dtype == "float32")
    tasks = [
        Task(label=name_of(t), kind="memory", settings=settings, contender=t, environment=MALLOC) for t in contenders
    ]
    measured = run_tasks(tasks, options, console)
    found = {t: measured.results[name_of(t)] for t in contenders if name_of(t) in measured.results}
    plain = found.get(PLAIN, {})

    def ratio(text: str, what: str) -> float | None:
        return over(found.get(text, {}).get(what), plain.get(what))

    def cell(text: str, what: str) -> str:
        value, share = found[text][what], ratio(text, what)
        return "-" if value is None else mebibytes(value) + ("" if share is None else f", {share:.2f}x")

    rows = [
        {"policy": name_of(t), "settings": asdict(settings)}
        | result
        | {"saved_ratio": ratio(t, "saved_bytes"), "peak_ratio": ratio(t, "peak_bytes")}
        for t, result in found.items()
    ]

    def draw(figure: Any) -> None:
        names = [name_of(t) for t in found]
        left, right = figure.subplots(1, 2)
        wanted = {"saved for backward": "saved_bytes", "peak of a step": "peak_bytes"}
        series = {label: [ratio(t, what) for t in found] for label, what in wanted.items()}
        bars(left, names, series, unit="bytes / plain Inductor's", line=1)
        bits = {"": [result["input_bits"] for result in found.values()]}
        bars(right, names, bits, unit="bits an element of a linear's input", line=None)

    return Report(
        name="memory",
        title=f"memory of forward and backward, {size_text(settings)}",
        headings=("policy", "saved for backward", "bits an element of a linear's input", "peak above what was there"),
        cells=[
            [
                name_of(t),
                cell(t, "saved_bytes"),
                "-" if result["input_bits"] is None else f"{result['input_bits']:.2f}",
                cell(t, "peak_bytes"),
            ]
            for t, result in found.items()
        ],
        numbers={"rows": rows},
        draw=draw,
        measured=measured,
    )
