"""Where the time of a step goes on the CPU: forward and backward of one policy, by kind of work.

    python benchmarks/step_profile.py metis metis-paper nvfp4 high --width 512 --out benchmarks/results/profile

Calls of the C++ kernels are timed one by one; operators of torch come from its profiler, each counted once, at the
outermost that is named here; what is left is Inductor's own kernels and the calls between. "copying" is what a copy of
as many bytes as those calls read and write takes on this machine, from memory to memory: only what stays in cache takes
less.

Writes profile.json and profile.md.
"""

import argparse
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from metis_compile.bench.candidate import trainer
from metis_compile.bench.turns import WARM_UP, batch
from metis_compile.kernels.cpu import launch
from metis_compile.measure.machine import machine
from metis_compile.measure.markdown import markdown_table
from metis_compile.train.settings import Settings

CALLS = {  # functions of `calls`, and the kind that each is
    "_gemm": "bfloat16 products",
    "thin_sum": "sums with thin products",
    "values": "quantize",
    "parts": "quantize",
    "decode": "decode",
    "tensor_scale": "tensor scales",
    "cast": "casts and joins of factors",
    "cat": "casts and joins of factors",
}
OPERATORS = {
    "metis::power_step": "bases",
    "metis::fresh_basis": "bases",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "attention",
    "aten::mm": "float32 products: thin ones, the head",
    "aten::addmm": "float32 products: thin ones, the head",
    "aten::bmm": "float32 products: thin ones, the head",
}
REST = "Inductor's kernels and the rest"


def profiled(policy: str, settings: Settings, steps: int) -> dict[str, Any]:
    """Milliseconds of a step, by kind; the median step's, and the bytes that calls read and write."""
    trained = trainer(policy, settings)
    seconds: defaultdict[str, float] = defaultdict(float)
    moved: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    restored = {name: getattr(launch, name) for name in CALLS}

    def timed(name: str) -> Callable[..., Any]:
        run, kind = restored[name], CALLS[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = run(*args, **kwargs)
            seconds[kind] += time.perf_counter() - start
            moved[kind] += sum(t.nbytes for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
            counted[kind] += 1
            return result

        return call

    walls = []
    try:
        for name in CALLS:
            setattr(launch, name, timed(name))
        for step in range(WARM_UP):
            trained.gradients(*batch(settings, step))
            trained.update(step)
        for counter in (seconds, moved, counted):
            counter.clear()
        for step in range(WARM_UP, WARM_UP + steps):
            with profile(activities=[ProfilerActivity.CPU]) as found:
                start = time.perf_counter()
                trained.gradients(*batch(settings, step))
                walls.append(time.perf_counter() - start)
            for event in found.events():
                if event.name in OPERATORS and not inside(event):
                    seconds[OPERATORS[event.name]] += event.cpu_time_total / 1e6
                    counted[OPERATORS[event.name]] += 1
            trained.update(step)
    finally:
        for name, run in restored.items():
            setattr(launch, name, run)
    total = sum(walls) / steps
    kinds = {kind: spent / steps for kind, spent in seconds.items()}
    kinds[REST] = total - sum(kinds.values())
    return {
        "policy": policy,
        "steps": steps,
        "seconds": total,
        "median_seconds": statistics.median(walls),
        "kinds": kinds,
        "calls": {kind: count / steps for kind, count in counted.items()},
        "bytes": {kind: count / steps for kind, count in moved.items()},
    }


def inside(event: Any) -> bool:
    """Whether it is part of an operator that is counted."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name in OPERATORS:
            return True
        parent = parent.cpu_parent
    return False


def copy_bandwidth() -> float:
    """Bytes a second that a copy reads and writes, of 256 MiB."""
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(times)


def table(numbers: dict[str, Any]) -> str:
    """A row for each kind, a column for each policy: milliseconds, and those of a copy of as many bytes."""
    rows = numbers["rows"]
    kinds = dict.fromkeys(kind for row in rows for kind in row["kinds"] if kind != REST)
    order = sorted(kinds, key=lambda kind: -max(row["kinds"].get(kind, 0.0) for row in rows))
    made = []
    for kind in (*order, REST):
        cells = []
        for row in rows:
            spent, moved = row["kinds"].get(kind), row["bytes"].get(kind)
            text = "-" if spent is None else f"{1e3 * spent:.0f}"
            copying = kind not in CALLS.values() or kind == "bfloat16 products" or moved is None
            cells.append(text if copying else f"{text} ({1e3 * moved / numbers['copy_bytes_per_second']:.0f})")
        made.append([kind, *cells])
    made.append(["a step's forward and backward", *(f"{1e3 * row['seconds']:.0f}" for row in rows)])
    return markdown_table(("milliseconds (copying)", *(row["policy"] for row in rows)), made)


def main() -> None:
    """Profile the policies that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    settings = Settings(width=given.width, batch=8, device="cpu", dtype="float32")
    rows = [profiled(policy, settings, given.steps) for policy in given.policies]
    numbers = {
        "title": f"where a step goes, width {given.width}, 4 layers, 2048 tokens, float32, under torch's profiler",
        "machine": machine(),
        "copy_bytes_per_second": copy_bandwidth(),
        "rows": rows,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "profile.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (given.out / "profile.md").write_text(f"{numbers['title']}\n\n{table(numbers)}")
    print(table(numbers))


if __name__ == "__main__":
    main()
