"""``metis bench``: speed, compile time and memory, beside plain Inductor.

And kernels by themselves: products of packed operands beside cuBLAS, quantization beside a copy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metis_compile.cli.errors import user_errors

if TYPE_CHECKING:
    from rich.console import Console

    from metis_compile.bench.report import Report
    from metis_compile.bench.runner import Options
    from metis_compile.train.settings import Settings

__all__ = ["bench"]

SIZE = "Size of the model and its steps"

Policies = Annotated[list[str], typer.Argument(metavar="POLICY...", help="Presets or policy files.")]
Out = Annotated[Path, typer.Option(help="Folder for the numbers and the plot.")]
Rounds = Annotated[int, typer.Option(help="Steps, or calls, that are timed of each, in turn.")]
Threads = Annotated[int | None, typer.Option(help="Of each process.", show_default="all cores")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
DType = Annotated[
    str | None,
    typer.Option(
        help="What full precision computes in: float32, or bfloat16 by autocast.",
        show_default="float32 on cpu, bfloat16 on cuda",
    ),
]
Width = Annotated[int, typer.Option(rich_help_panel=SIZE, help="Features.")]
Layers = Annotated[int, typer.Option(rich_help_panel=SIZE, help="Blocks.")]
Tokens = Annotated[int, typer.Option(rich_help_panel=SIZE, help="In a step, in sequences of 256.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        rich_help_panel=SIZE,
        help="gpt, or llama-8b-block: one, of width 4096, with an MLP of 14336 and 32 heads, and 8192 tokens by 2048.",
    ),
]
ModelWidth = Annotated[int | None, typer.Option(rich_help_panel=SIZE, help="Features.", show_default="the model's")]
ModelWidths = Annotated[
    list[int] | None,
    typer.Option(rich_help_panel=SIZE, help="Features; several times for several widths.", show_default="the model's"),
]
ModelLayers = Annotated[int | None, typer.Option(rich_help_panel=SIZE, help="Blocks.", show_default="the model's")]
ModelTokens = Annotated[
    int | None,
    typer.Option(rich_help_panel=SIZE, help="In a step, in the model's sequences.", show_default="the model's"),
]

OUT, WIDTH, LAYERS, TOKENS, ROUNDS = Path("runs/bench"), 512, 4, 2048, 16

bench = typer.Typer(
    name="bench",
    help="Measure speed, compile time and memory of training a GPT under a policy, beside plain Inductor; and kernels.",
    no_args_is_help=True,
)


@bench.command()
def step(
    policies: Policies,
    model: ModelName = "gpt",
    width: ModelWidths = None,
    layers: ModelLayers = None,
    tokens: ModelTokens = None,
    rounds: Rounds = ROUNDS,
    device: Device = "auto",
    dtype: DType = None,
    threads: Threads = None,
    out: Out = OUT,
    json: AsJson = False,
) -> None:
    """Step time: forward and backward, and the whole optimizer step, each policy in turn with plain Inductor."""

    def run(options: "Options", console: "Console") -> "Report":
        sizes = sizes_of(width, layers, tokens, device, dtype, model)
        from metis_compile.bench.step import bench_step

        return bench_step(policies, sizes, options, console)

    show(run, out=out, rounds=rounds, threads=threads, json=json)


@bench.command("compile")
def compile_(
    policies: Policies,
    width: Width = WIDTH,
    layers: Layers = LAYERS,
    tokens: Tokens = TOKENS,
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N...",
            rich_help_panel=SIZE,
            help="Blocks to measure cold starts at in place of --layers, for what one more adds.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Cold and warm starts of each.")] = 3,
    device: Device = "auto",
    dtype: DType = None,
    threads: Threads = None,
    out: Out = OUT,
    json: AsJson = False,
) -> None:
    """Time to the first gradients, cold and with a warm cache, in wall and CPU seconds, and how much of it is ours."""

    def run(options: "Options", console: "Console") -> "Report":
        if depths is not None:
            from metis_compile.bench.depth import bench_depth

            layers_of = sorted(set(numbers("depths", depths)))
            sizes = [size(width, depth, tokens, device, dtype) for depth in layers_of]
            return bench_depth(policies, sizes, options, console)
        from metis_compile.bench.start import bench_compile

        return bench_compile(policies, size(width, layers, tokens, device, dtype), options, console)

    show(run, out=out, rounds=rounds, threads=threads, json=json)


@bench.command()
def memory(
    policies: Policies,
    model: ModelName = "gpt",
    width: ModelWidth = None,
    layers: ModelLayers = None,
    tokens: ModelTokens = None,
    rounds: Annotated[int, typer.Option(help="Processes of each, in turn; the peak differs between them.")] = 3,
    device: Device = "auto",
    dtype: DType = None,
    threads: Threads = None,
    out: Out = OUT,
    json: AsJson = False,
) -> None:
    """Bytes that forward keeps for backward, bits an element of a linear's input, and the peak of a step."""

    def run(options: "Options", console: "Console") -> "Report":
        from metis_compile.bench.memory import bench_memory

        return bench_memory(policies, size(width, layers, tokens, device, dtype, model), options, console)

    show(run, out=out, rounds=rounds, threads=threads, json=json)


@bench.command()
def scaling(
    policies: Policies,
    widths: Annotated[str, typer.Option(rich_help_panel=SIZE, help="Features to measure at.")] = "256,512,1024",
    depths: Annotated[str, typer.Option(rich_help_panel=SIZE, help="Blocks to measure at.")] = "2,4,8",
    token_counts: Annotated[
        str, typer.Option("--tokens", rich_help_panel=SIZE, help="Tokens in a step to measure at.")
    ] = "1024,2048,4096",
    rounds: Rounds = 8,
    device: Device = "auto",
    dtype: DType = None,
    threads: Threads = None,
    out: Out = OUT,
    json: AsJson = False,
) -> None:
    """How step time, compile time and saved bytes grow with width, depth and tokens, one at a time.

    The other two stay at the middle one of theirs. With the defaults, one policy takes about 10 minutes on two cores of
    a CPU with bfloat16 instructions, and each further one some 7 more.
    """

    def run(options: "Options", console: "Console") -> "Report":
        from metis_compile.bench.scaling import bench_scaling

        given = {"widths": widths, "depths": depths, "tokens": token_counts}
        points = dict(zip(("width", "layers", "tokens"), (numbers(*item) for item in given.items()), strict=True))
        middle = {axis: sorted(values)[len(values) // 2] for axis, values in points.items()}
        where, what = resolved(device, dtype)
        return bench_scaling(policies, middle, points, where, what, options, console)

    show(run, out=out, rounds=rounds, threads=threads, json=json)


Shape = Annotated[list[str] | None, typer.Option(metavar="SHAPE", help="Several times for several.")]
Format = Annotated[
    list[str] | None, typer.Option(metavar="FORMAT", help="A name, or a text such as 'nvfp4 16x16 nearest'; as often.")
]


@bench.command()
def gemm(
    shape: Shape = None,
    format: Format = None,
    rounds: Rounds = 32,
    device: Device = "auto",
    out: Out = OUT,
    json: AsJson = False,
) -> None:
    """Products of packed operands over cuBLAS' of bfloat16, Inductor's, and torch._scaled_mm's of FP8, on a CUDA GPU.

    A shape is MxNxK; without one, a square and the linears of a Llama of 8B parameters.
    """

    def run(options: "Options", console: "Console") -> "Report":
        from metis_compile.bench.gemm import FORMATS, SHAPES, bench_gemm

        where, _ = resolved(device, None)
        return bench_gemm(shape or SHAPES, format or FORMATS, where, options, console)

    show(run, out=out, rounds=rounds, threads=None, json=json)


@bench.command()
def quantize(
    shape: Shape = None,
    format: Format = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="What is quantized: float32, bfloat16 or float16.", show_default="float32 on cpu, bfloat16 on cuda"
        ),
    ] = None,
    rounds: Rounds = 32,
    device: Device = "auto",
    threads: Threads = None,
    out: Out = OUT,
    json: AsJson = False,
) -> None:
    """Quantizing a matrix over copying as many bytes: the Triton kernel on CUDA, the C++ kernels on a CPU.

    A shape is ROWSxCOLUMNS.
    """

    def run(options: "Options", console: "Console") -> "Report":
        from metis_compile.bench.quantize import FORMATS, SHAPES, bench_quantize

        where, what = resolved(device, dtype)
        shapes = shape or [SHAPES[where.partition(":")[0]]]
        return bench_quantize(shapes, format or FORMATS, what, where, options, console)

    show(run, out=out, rounds=rounds, threads=threads, json=json)


@bench.command()
def machine(
    rounds: Annotated[int, typer.Option(help="Times that each number is measured; the best is kept.")] = 20,
    threads: Threads = None,
    out: Out = OUT,
) -> None:
    """What this CPU can do, as a file for `metis explain --device`: FLOP/s, bytes/s, and the start of a kernel."""
    from rich.console import Console

    from metis_compile.bench.errors import BenchError

    with user_errors(BenchError):
        import torch

        from metis_compile.bench.roofline import measure_device, write_device

        if threads is not None:
            if threads < 1:
                raise BenchError(f"threads must be at least 1, got {threads}")
            torch.set_num_threads(threads)
        found = measure_device(rounds)
        path = write_device(found, out)
    console = Console()
    for unit, rate in found.rates.items():
        console.print(f"{unit}: {rate / 1e9:.3g} {'Gelements/s' if unit == 'quantize' else 'GFLOP/s'}")
    console.print(f"memory: {found.bandwidth / 1e9:.3g} GB/s, start of a kernel: {found.start * 1e6:.2g} us")
    console.print(str(path), highlight=False, soft_wrap=True)


def size(
    width: int | None, layers: int | None, tokens: int | None, device: str, dtype: str | None, model: str = "gpt"
) -> Any:
    """The settings of one model, of its own size where none is given."""
    from metis_compile.bench.size import model_of, settings_of

    where, what = resolved(device, dtype)
    given = {"width": width, "layers": layers, "tokens": tokens}
    sizes = {name: getattr(model_of(model), name) if value is None else value for name, value in given.items()}
    return settings_of(**sizes, device=where, dtype=what, model=model)


def resolved(device: str, dtype: str | None) -> tuple[str, str]:
    """The device, and what full precision computes in on it."""
    from metis_compile.train.settings import resolve_device

    where = resolve_device(device)
    return where, dtype or ("float32" if where == "cpu" else "bfloat16")


def numbers(name: str, text: str) -> list[int]:
    """``256,512`` as numbers."""
    from metis_compile.bench.errors import BenchError

    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise BenchError(f"{name} must be numbers above 0 with commas between them, got {text!r}")
    return found


def sizes_of(
    widths: list[int] | None, layers: int | None, tokens: int | None, device: str, dtype: str | None, model: str
) -> "list[Settings]":
    """The settings for each width, or for the model's own."""
    each: list[int | None] = [*dict.fromkeys(widths or [])] or [None]
    return [size(width, layers, tokens, device, dtype, model) for width in each]


def show(
    run: "Callable[[Options, Console], Report]", *, out: Path, rounds: int, threads: int | None, json: bool
) -> None:
    """Run a benchmark, write its files and print its numbers; status 1 if a part of it failed."""
    from rich.console import Console

    from metis_compile.bench.errors import BenchError
    from metis_compile.bench.report import write
    from metis_compile.bench.runner import Options
    from metis_compile.measure.plot import check_matplotlib
    from metis_compile.policy import PolicyError
    from metis_compile.train.errors import TrainError

    with user_errors(BenchError, TrainError, PolicyError):
        check_matplotlib(BenchError)
        options = Options(out=out, rounds=rounds, threads=threads)
        report = run(options, Console(stderr=True))
        measured = report.measured
        files = write(report, options) if measured.results else {}
    if json and files:
        typer.echo(files["json"].read_text(), nl=False)
    elif files:
        console = Console()
        console.print(report.table())
        for path in files.values():
            console.print(str(path), highlight=False, soft_wrap=True)
    for failure in measured.failures:
        typer.echo(f"metis: {failure.label} failed: {failure.reason}", err=True)
    if measured.signal is not None:
        raise typer.Exit(128 + measured.signal)
    if measured.failures:
        raise typer.Exit(1)
