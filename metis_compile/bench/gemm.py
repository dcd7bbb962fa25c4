"""Products of packed operands beside cuBLAS' of bfloat16 and of FP8, on one GPU."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from metis_compile.bench.errors import BenchError
from metis_compile.bench.plot import bars
from metis_compile.bench.report import Report
from metis_compile.bench.rounds import in_rounds
from metis_compile.bench.runner import Options, Task, run_tasks
from metis_compile.bench.shapes import sizes_of, spec_of
from metis_compile.bench.turns import WARM_UP
from metis_compile.compat import add_feedback_saver, inductor_config, scaled_mm
from metis_compile.kernels.capability import capability_of, copies_scales
from metis_compile.kernels.gemm.lowering import NAME, register_gemm
from metis_compile.kernels.gemm.op import GEMM
from metis_compile.measure.ratio import Ratio
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.swizzle import can_swizzle
from metis_compile.ops.quantization import QUANTIZE

__all__ = ["FORMATS", "SHAPES", "bench_gemm", "measure"]

BASELINE, INDUCTOR = "cuBLAS bfloat16", "Inductor bfloat16"
SCALED, SCALED_ROWS = "torch._scaled_mm FP8", "torch._scaled_mm FP8 by row"
FORMATS = ("nvfp4", "mxfp4", "mxfp8", "fp8")
# A square, and the linears of a Llama of 8B parameters at 8192 tokens: q and o, k and v, up and gate, down.
SHAPES = ("4096x4096x4096", "8192x4096x4096", "8192x1024x4096", "8192x14336x4096", "8192x4096x14336")
# All tile sizes are tried; and Inductor's caches know nothing of lowerings.
COMPILING: dict[str, Any] = {"max_autotune_gemm": True, "force_disable_caches": True}
TOLERANCE = 2**-7  # of the largest sum: a bfloat16 result, of float32 sums in another order


def measure(
    candidate: str,
    settings: None,
    stepped: Callable[[int], None],
    *,
    sizes: Sequence[int],
    formats: Sequence[str],
    device: str,
    rounds: int,
) -> dict[str, Any]:
    """Worker: seconds of [m, k] times [k, n] by each way, what Inductor's autotuner chose, and how far results are off.

    Raises BenchError where a product of packed operands is not what decoding and multiplying gives.
    """
    m, n, k = sizes
    torch.cuda.set_device(torch.device(device))
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(rows, k, generator=generator, device=device).bfloat16() for rows in (m, n))
    calls: dict[str, Callable[[], Tensor]] = {BASELINE: partial(torch.mm, a, b.T), INDUCTOR: plain(a, b)}
    if torch.cuda.get_device_capability() >= (8, 9):
        calls[SCALED] = scaled(a, b)
    if torch.cuda.get_device_capability() >= (9, 0):
        calls[SCALED_ROWS] = scaled_by_row(a, b)
    chosen: dict[str, str] = {}
    off: dict[str, float] = {}
    swizzles = copies_scales(capability_of(a.device))
    for text in formats:
        register_gemm()
        for label in (text, *([f"{text}, swizzled"] if swizzles and can_swizzle(spec_of(text)) else [])):
            calls[label], off[label] = packed(a, b, spec_of(text), chosen, label, swizzled=label != text)
            if not off[label] <= TOLERANCE:
                raise BenchError(f"the packed product of {label} is off by {off[label]:.2g} of the largest sum")
    times = in_rounds(list(calls.values()), rounds, device, stepped)
    return {"times": dict(zip(calls, times, strict=True)), "chosen": chosen, "off": off}


def plain(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """Plain Inductor's product, of its own templates or cuBLAS' as its autotuner finds."""
    call = partial(torch.compile(torch.mm, fullgraph=True, dynamic=False), a, b.T)
    with inductor_config.patch(COMPILING):
        call()
    return call


def scaled_by_row(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """The same under a scale of each row of a and of b, which the elements have been divided by."""
    scales = [t.float().abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max for t in (a, b)]
    left, right = ((t / scale).to(torch.float8_e4m3fn) for t, scale in zip((a, b), scales, strict=True))
    return partial(scaled_mm, left, right.T, scales[0], scales[1].T, torch.bfloat16)


def scaled(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """cuBLAS' product of E4M3 operands under a scale of the tensor each."""
    one = torch.ones((), device=a.device)
    left, right = (t.to(torch.float8_e4m3fn) for t in (a, b))
    return partial(scaled_mm, left, right.T, one, one, torch.bfloat16)


def packed(
    a: Tensor, b: Tensor, spec: QuantSpec, chosen: dict[str, str], label: str, swizzled: bool = False
) -> tuple[Callable[[], Tensor], float]:
    """The product of a and b in ``spec``, compiled, and how far it is off. Notes what the autotuner chose.

    swizzled: whether block scales lie as `metis_compile.numerics.swizzle` has them.
    """
    left, right = (QUANTIZE(x, str(spec), 1, swizzled=swizzled) for x in (a, b))
    k = a.shape[1]

    def product(left: list[Tensor], right: list[Tensor]) -> Tensor:
        how = (str(spec), 1, k, 1)
        return GEMM(left, *how, right, *how, []).to(torch.bfloat16)

    def note(timings: dict[Any, float], name: str, *_: Any) -> None:
        if name == NAME:
            best = min(timings, key=lambda choice: timings[choice])
            chosen.setdefault(label, f"{best.name}: {best.description}")

    add_feedback_saver(note)
    call = partial(torch.compile(product, fullgraph=True, dynamic=False), left, right)
    with inductor_config.patch(COMPILING):
        off = difference(call(), product(left, right))
    return call, off


def difference(actual: Tensor, wanted: Tensor) -> float:
    """The largest difference, over the largest magnitude of what is wanted."""
    return float((actual.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def bench_gemm(
    shapes: Sequence[str], formats: Sequence[str], device: str, options: Options, console: Console
) -> Report:
    """Each shape in a process of its own, all ways to multiply in turn. Raises BenchError without a CUDA GPU."""
    if torch.device(device).type != "cuda":
        raise BenchError(f"products of packed operands need a CUDA GPU, got device {device!r}")
    texts = list(dict.fromkeys(formats))
    for text in texts:
        spec_of(text)
    tasks = {
        shape: Task(
            label=shape,
            kind="gemm",
            candidate=shape,
            given={
                "sizes": sizes_of(shape, ("M", "N", "K")),
                "formats": texts,
                "device": device,
                "rounds": options.rounds,
            },
            steps=WARM_UP + options.rounds,
        )
        for shape in dict.fromkeys(shapes)
    }
    measured = run_tasks(list(tasks.values()), options, console)
    rows, cells = [], []
    found: dict[tuple[str, str], Ratio] = {}
    for shape in tasks:
        if shape not in measured.results:
            continue
        result = measured.results[shape]
        m, n, k = sizes_of(shape, ("M", "N", "K"))
        for way, times in result["times"].items():
            ratio = found[shape, way] = Ratio.of(result["times"][BASELINE], times)
            taken = median(times)
            chosen = result["chosen"].get(way)
            speed = 2e-12 * m * n * k / taken
            kernel = (chosen or "-").partition(":")[0]
            cells.append([shape, way, f"{1e6 * taken:.1f} us", f"{speed:.0f}", str(ratio), kernel])
            rows.append(
                {"m": m, "n": n, "k": k, "way": way, "times": times, "tflops": speed}
                | {"speed": asdict(ratio), "chosen": chosen, "off": result["off"].get(way)}
            )

    def draw(figure: Any) -> None:
        ways = list(dict.fromkeys(way for _, way in found))
        series = {way: [found.get((shape, way)) for shape in tasks] for way in ways}
        bars(figure.subplots(), list(tasks), series, unit="speed / cuBLAS bfloat16's", line=1)

    return Report(
        name="gemm",
        title=f"products M x N x K into bfloat16, quantizing left out: median of {options.rounds} rounds (quartiles)",
        headings=("shape", "operands", "time", "TFLOP/s", "speed / cuBLAS bfloat16", "kernel"),
        cells=cells,
        numbers={"rows": rows},
        draw=draw,
        measured=measured,
    )
