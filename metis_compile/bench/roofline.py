"""What this CPU can do, for the cost model: rates of products and quantization, bandwidth, the start of a kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metis_compile.bench.clock import seconds
from metis_compile.bench.errors import BenchError
from metis_compile.bench.quantize import cases_on_cpu
from metis_compile.compat import bf16_gemm
from metis_compile.cost_model.devices import Device
from metis_compile.kernels.cpu import launch
from metis_compile.measure.folder import check_folder, writing
from metis_compile.measure.machine import machine, processor
from metis_compile.numerics import QuantSpec

__all__ = ["measure_device", "write_device"]

SIDE = 1024  # of the matrices that are multiplied
ROWS, COLUMNS = 2048, 1024  # of what is quantized
COPIED = 1 << 27  # bytes, more than caches hold
SMALL = 16  # side of the matrices of a kernel that is all start


def measure_device(rounds: int) -> Device:
    """This CPU with torch's present number of threads. Each number is the best of the rounds, which run in turn."""
    if rounds < 1:
        raise BenchError(f"rounds must be at least 1, got {rounds}")
    cases = _cases()
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds + 1):  # the first warms up, and can't be the best of more than one
        for name, run in cases.items():
            best[name] = min(best[name], seconds(run, "cpu"))
    start = best["start"]
    flops = 2 * SIDE**3
    return Device(
        name=f"{torch.get_num_threads()} threads of {processor()}",
        rates={
            "float32": flops / (best["float32"] - start),
            "bfloat16": flops / (best["bfloat16"] - start),
            "quantize": ROWS * COLUMNS / best["quantize"],
        },
        bandwidth=2 * COPIED / best["copy"],
        start=start,
        autocast=False,
        decodes=True,
        source="metis bench machine",
    )


def _cases() -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
    exact = torch.bfloat16 if bf16_gemm() is not None else torch.float32
    low_a, low_b, out = a.to(exact), b.to(exact), torch.empty(SIDE, SIDE)
    small = torch.ones(SMALL, SMALL)
    room = torch.ones(2, COPIED, dtype=torch.uint8)
    x = torch.randn(ROWS, COLUMNS, generator=generator)
    quantize, _ = cases_on_cpu(x, QuantSpec.make("nvfp4"))["x", "rows"]
    return {
        "float32": lambda: torch.mm(a, b, out=out),
        "bfloat16": lambda: launch.product(low_a, low_b, out=out),
        "quantize": quantize,
        "copy": lambda: room[0].copy_(room[1]),
        "start": lambda: torch.mm(small, small),
    }


def write_device(device: Device, folder: Path) -> Path:
    """Writes machine.json, which `metis explain --device` takes. Raises BenchError where that fails."""
    check_folder(folder, BenchError)
    path = folder / "machine.json"
    values: dict[str, Any] = {"device": device.to_dict(), "measured": machine()}
    with writing(path, BenchError):
        path.write_text(json.dumps(values, indent=2) + "\n")
    return path
