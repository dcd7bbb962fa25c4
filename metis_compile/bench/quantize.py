"""The quantize kernels beside a copy of as many bytes: the Triton kernel on a GPU, the C++ kernels on a CPU."""

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
from metis_compile.conditioning import fixed_signs
from metis_compile.kernels.capability import capability_of, copies_scales
from metis_compile.kernels.cpu import launch
from metis_compile.kernels.parts import tensor_target
from metis_compile.kernels.quantize.ops import QUANTIZE_TILES, QUANTIZE_TILES_INTO, TILES_AMAX
from metis_compile.measure.ratio import Ratio
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.formats import tiled_blocks
from metis_compile.numerics.quantize import part_shapes
from metis_compile.numerics.swizzle import can_swizzle

__all__ = ["FORMATS", "SHAPES", "bench_quantize", "measure"]

FORMATS = ("nvfp4", "nvfp4 1x16 stochastic round_up", "mxfp8")
SHAPES = {"cpu": "4096x1024", "cuda": "16384x8192"}
AXES = {"rows": (1,), "columns": (0,), "both": (1, 0)}  # along which blocks lie
SOURCES = ("x", "x - mean", "x - rank 16", "x - rank 64", "x H")  # what a GPU quantizes, of x as it lies in memory
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNIT = "speed / that of a copy of as many bytes"
Cases = dict[tuple[str, str], tuple[Callable[[], object], int]]


def measure(
    candidate: str,
    settings: None,
    stepped: Callable[[int], None],
    *,
    sizes: Sequence[int],
    dtype: str,
    device: str,
    rounds: int,
) -> dict[str, Any]:
    """Worker: seconds of quantizing to the format ``candidate`` and of copies, by source and orientation."""
    spec = spec_of(candidate)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(*sizes, generator=generator, device=device).to(DTYPES[dtype])
    cases = cases_on_cpu(x, spec) if x.device.type == "cpu" else cases_on_cuda(x, spec)
    room = torch.ones(2, max(count for _, count in cases.values()) // 2, dtype=torch.uint8, device=device)
    runs: list[Callable[[], object]] = []
    for run, count in cases.values():
        runs += [run, copy_of(room, count)]
    times = in_rounds(runs, rounds, device, stepped)
    return {
        "cases": [
            {"source": source, "blocks": blocks, "bytes": count, "times": times[2 * i], "copies": times[2 * i + 1]}
            for i, ((source, blocks), (_, count)) in enumerate(cases.items())
        ]
    }


def copy_of(room: Tensor, count: int) -> Callable[[], object]:
    """Reads half of so many bytes from the second row of ``room`` and writes them to the first."""
    return partial(room[0, : count // 2].copy_, room[1, : count // 2])


def cases_on_cuda(x: Tensor, spec: QuantSpec) -> Cases:
    """(source, orientation) -> the kernel's call, with its amax at hand, and the bytes that it reads and writes.

    Of x as it is with swizzled scales too, on a GPU where products read them so.
    """
    rows, columns = x.shape
    swizzles = copies_scales(capability_of(x.device)) and can_swizzle(spec)
    kind: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    thin = {
        rank: [torch.randn(*shape, **kind).bfloat16() for shape in ((rows, rank), (rank, columns))] for rank in (16, 64)
    }
    given: dict[str, list[Tensor | None]] = {
        "x": [x, None, None, None, None],
        "x - mean": [x, torch.randn(1, columns, **kind), None, None, None],
        "x - rank 16": [x, None, *thin[16], None],
        "x - rank 64": [x, None, *thin[64], None],
        "x H": [x, None, None, None, fixed_signs(x.device)],
    }
    amax = x.abs().amax().float() if spec.fmt.tensor_scale else None
    seed = torch.ones(1, dtype=torch.int64, device=x.device) if spec.needs_noise else None
    cases: Cases = {}
    for name in SOURCES:
        for blocks, axes in AXES.items():
            if len(axes) > 1 and (name == "x H" or spec.orientation_free):
                continue  # a transform goes along the blocks, and square blocks lie along both
            labels = {blocks: [], **({f"{blocks}, swizzled": list(axes)} if swizzles and name == "x" else {})}
            for label, swizzled in labels.items():
                how = [str(spec), list(axes), [0] * len(axes), swizzled]
                out = QUANTIZE_TILES(*given[name], amax, seed, *how)
                count = sum(t.nbytes for t in [*given[name], *out] if t is not None)
                cases[name, label] = (partial(QUANTIZE_TILES_INTO, *given[name], amax, seed, out, *how), count)
        if amax is not None and name not in ("x", "x - mean"):  # of these Inductor finds it
            read = sum(t.nbytes for t in given[name] if t is not None)
            cases[name, "amax alone"] = (partial(TILES_AMAX, *given[name], 1), read)
    return cases


def cases_on_cpu(x: Tensor, spec: QuantSpec) -> Cases:
    """The same of x as it is; the C++ kernels make one orientation a call."""
    scale: list[Tensor] = []
    if (target := tensor_target(spec)) is not None:
        scale = [torch.empty(()), torch.empty(())]
        launch.tensor_scale(x, target, *scale)
    given = [*scale, *([torch.ones(1, dtype=torch.int64)] if spec.needs_noise else [])]
    made: dict[int, tuple[Callable[[], object], int]] = {}
    for axis in (0, 1):
        codes_shape, scales_shape = part_shapes(spec, x.shape, axis)
        codes = torch.empty(codes_shape, dtype=torch.uint8)
        scales = None if scales_shape is None else torch.empty(scales_shape, dtype=spec.fmt.scale_dtype)
        run = partial(launch.parts, x, *given, spec=str(spec), axis=axis, stream=0, codes=codes, block_scales=scales)
        made[axis] = run, x.nbytes + codes.nbytes + (0 if scales is None else scales.nbytes)

    def both() -> None:
        for run, _ in made.values():
            run()

    cases = {("x", blocks): made[axes[0]] for blocks, axes in AXES.items() if len(axes) == 1}
    return cases if spec.orientation_free else {**cases, ("x", "both"): (both, made[0][1] + made[1][1])}


def bench_quantize(
    shapes: Sequence[str], formats: Sequence[str], dtype: str, device: str, options: Options, console: Console
) -> Report:
    """Each shape and format in a process of its own. Raises BenchError for a format that no kernel of ours takes."""
    if dtype not in DTYPES:
        raise BenchError(f"dtype must be {', '.join(DTYPES)}, got {dtype!r}")
    on_cpu = torch.device(device).type == "cpu"
    texts = list(dict.fromkeys(formats))
    for text in texts:
        if not on_cpu and spec_of(text).block_shape is None:
            raise BenchError(
                f"on a GPU the blocks must be one of {', '.join(tiled_blocks())}, got {str(spec_of(text))!r}"
            )
    tasks = {
        (shape, text): Task(
            label=f"{shape} {dtype}, {spec_of(text)}",
            kind="quantize",
            candidate=text,
            given={
                "sizes": sizes_of(shape, ("ROWS", "COLUMNS")),
                "dtype": dtype,
                "device": device,
                "rounds": options.rounds,
            },
            steps=WARM_UP + options.rounds,
        )
        for shape in dict.fromkeys(shapes)
        for text in texts
    }
    measured = run_tasks(list(tasks.values()), options, console)
    rows, cells = [], []
    found: dict[tuple[str, str, str, str], Ratio] = {}
    for (shape, text), task in tasks.items():
        height, width = sizes_of(shape, ("ROWS", "COLUMNS"))
        for case in measured.results.get(task.label, {"cases": []})["cases"]:
            ratio = found[shape, text, case["source"], case["blocks"]] = Ratio.of(case["copies"], case["times"])
            taken = median(case["times"])
            each = 1e9 * taken / (height * width)
            cells.append(
                [
                    shape,
                    str(spec_of(text)),
                    f"{case['source']}, {case['blocks']}",
                    f"{1e6 * taken:.1f} us",
                    f"{each:.4f}" if each < 0.1 else f"{each:.3f}",
                    f"{1e-9 * case['bytes'] / taken:.0f} GB/s",
                    f"{100 * ratio.median:.0f} % ({100 * ratio.low:.0f}-{100 * ratio.high:.0f})",
                ]
            )
            rows.append(
                {"rows": height, "columns": width, "dtype": dtype, "format": str(spec_of(text)), **case}
                | {"nanoseconds_an_element": each, "share_of_copy": asdict(ratio)}
            )

    def draw(figure: Any) -> None:
        names = list(dict.fromkeys((shape, source, blocks) for shape, _, source, blocks in found))
        series = {text: [found.get((shape, text, source, blocks)) for shape, source, blocks in names] for text in texts}
        where = {shape: f"{shape}\n" if len(set(shapes)) > 1 else "" for shape in shapes}
        labels = [f"{where[shape]}{source}, {blocks}" for shape, source, blocks in names]
        figure.set_size_inches(max(9.0, 0.8 * len(names)), 5)
        bars(figure.subplots(), labels, series, unit=UNIT, line=1)

    return Report(
        name="quantize",
        title=f"quantizing {dtype} on {device}: median of {options.rounds} rounds (quartiles)",
        headings=("shape", "format", "of, along", "time", "ns an element", "bandwidth", "of a copy's"),
        cells=cells,
        numbers={"rows": rows},
        draw=draw,
        measured=measured,
    )
