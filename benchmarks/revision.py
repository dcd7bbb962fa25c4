"""Step time of this checkout over that of another commit of it: a process each, which take steps in turn.

    python benchmarks/revision.py HEAD~1 nvfp4 best --width 512

The package as it is here, with what is not committed, over the package as it was in that commit.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import IO, Annotated, Any

import revision_worker
import typer
from rich.console import Console

import metis_compile
from metis_compile.bench.candidate import check_policies, name_of
from metis_compile.bench.errors import BenchError
from metis_compile.bench.plot import bars
from metis_compile.bench.report import Report
from metis_compile.bench.runner import Measured, Options
from metis_compile.bench.size import size_text
from metis_compile.bench.turns import WARM_UP
from metis_compile.cli.bench import (
    OUT,
    ROUNDS,
    AsJson,
    Device,
    DType,
    ModelLayers,
    ModelName,
    ModelTokens,
    ModelWidths,
    Out,
    Policies,
    Rounds,
    Threads,
    show,
    sizes_of,
)
from metis_compile.compare.run_config import RunConfig
from metis_compile.measure import repository
from metis_compile.measure.interrupt import StopRequest
from metis_compile.measure.progress import JobProgress
from metis_compile.measure.ratio import Ratio
from metis_compile.measure.schedule import Failure, tail
from metis_compile.train import model
from metis_compile.train.report import milliseconds
from metis_compile.train.settings import Settings

__all__ = ["bench_revision", "checked_out", "commit_of"]

PACKAGE = Path(metis_compile.__file__).resolve().parent


def commit_of(revision: str, package: Path = PACKAGE) -> str:
    """The commit that ``revision`` names in the package's own repository. Raises BenchError if there is none."""
    root = package.parent
    if git(root, "ls-files", "--error-unmatch", f"{package.name}/__init__.py") is None:
        raise BenchError(f"a baseline needs metis_compile to run from a git checkout of it, and {package} is in none")
    found = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found is None:
        raise BenchError(f"baseline must be a commit of {root}, got {revision!r}")
    if git(root, "cat-file", "-e", f"{found}:./{package.name}/backend.py") is None:
        raise BenchError(f"baseline must be a commit that has {package.name}/backend.py, got {revision!r}")
    return found


def git(root: Path, *arguments: str) -> str | None:
    """What git prints, None where it fails. Raises BenchError where there is no git."""
    try:
        return repository.git(root, *arguments)
    except FileNotFoundError:
        raise BenchError("a baseline needs git, which is not installed") from None


@contextmanager
def checked_out(commit: str, package: Path = PACKAGE) -> Iterator[Path]:
    """Within: a folder for PYTHONPATH with the package as it was in ``commit``, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="metis-bench-") as folder:
        tree, path = Path(folder, "tree"), Path(folder, "path")
        if git(package.parent, "worktree", "add", "--detach", str(tree), commit) is None:
            raise BenchError(f"git could not check out {commit} into {tree}")
        try:
            prefix = git(package.parent, "rev-parse", "--show-prefix") or ""
            yield alone(tree / prefix / package.name, path)
        finally:
            git(package.parent, "worktree", "remove", "--force", str(tree))


def alone(package: Path, folder: Path) -> Path:
    """``folder`` with nothing but a link to ``package``: what lies beside it in a checkout must not be importable."""
    folder.mkdir()
    (folder / package.name).symlink_to(package)
    return folder


class _Side:
    """A process that takes a step when told to. A context manager."""

    def __init__(self, path: Path, request: Mapping[str, Any], options: Options, errors: IO[str]) -> None:
        self.errors = errors
        self.process = subprocess.Popen(
            # -P: the worker's own folder must not be importable either.
            [sys.executable, "-P", revision_worker.__file__, json.dumps({**request, "package": str(path)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": str(options.count)},
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone
        )

    def __enter__(self) -> "_Side":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def step(self) -> float:
        """Seconds of one forward and backward. Raises RuntimeError with what the process said if it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # why, is in what it printed
        for line in self.process.stdout:
            if line.startswith(revision_worker.ANSWER):
                return float(line.removeprefix(revision_worker.ANSWER))
        raise RuntimeError(tail(self.errors))


def bench_revision(
    policies: Sequence[str], sizes: Sequence[Settings], revision: str, options: Options, console: Console
) -> Report:
    """Each policy at each size, in this checkout over ``revision``. Raises BenchError if there is no such commit.

    SIGINT and SIGTERM stop it after the round under way, with what was measured until then.
    """
    commit = commit_of(revision)
    candidates = check_policies(policies)
    for text in candidates:
        if RunConfig(text=text).changes:
            raise BenchError(f"a baseline takes policies alone, got {text!r}")
    cases = [(text, settings) for settings in sizes for text in candidates]
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    failures: list[Failure] = []
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())  # until the other checkout is gone again
        paths = {"now": alone(PACKAGE, Path(stack.enter_context(tempfile.TemporaryDirectory())) / "path")}
        paths["before"] = stack.enter_context(checked_out(commit))
        progress = stack.enter_context(JobProgress(console, len(cases)))
        for text, settings in cases:
            if stop:
                break
            label = f"{name_of(text)}, width {settings.width}"
            progress.began(label, WARM_UP + options.rounds)
            try:
                times = rounds_of(paths, text, settings, options, label, progress, stop)
                if times is not None:
                    found[text, settings.width] = times
                progress.ended(label, "interrupted" if times is None else "done")
            except RuntimeError as error:
                failures.append(Failure(label=label, reason=str(error)))
                progress.ended(label, str(error))

    ratios = {case: Ratio.of(times["now"], times["before"]) for case, times in found.items()}

    def draw(figure: Any) -> None:
        series = {f"width {s.width}": [ratios.get((text, s.width)) for text in candidates] for s in sizes}
        bars(figure.subplots(), [name_of(t) for t in candidates], series, unit=f"step / {revision}'s", line=1)

    return Report(
        name="baseline",
        title=f"forward and backward, {size_text(sizes[0])}: this checkout over {revision} ({commit[:9]})",
        headings=("policy", "width", revision, "this checkout", "ratio"),
        cells=[
            [name_of(text), str(width), *(milliseconds(median(times[side])) for side in ("before", "now")), str(ratio)]
            for (text, width), times in found.items()
            for ratio in [ratios[text, width]]
        ],
        numbers={
            "baseline": {"revision": revision, "commit": commit},
            "rows": [
                {"policy": name_of(text), "settings": asdict(settings), "times": found[text, settings.width]}
                | {"ratio": asdict(ratios[text, settings.width])}
                for text, settings in cases
                if (text, settings.width) in found
            ],
        },
        draw=draw,
        measured=Measured(
            results={f"{name_of(text)}, width {width}": times for (text, width), times in found.items()},
            failures=failures,
            signal=stop.signal,
        ),
    )


def rounds_of(
    paths: Mapping[str, Path],
    text: str,
    settings: Settings,
    options: Options,
    label: str,
    progress: JobProgress,
    stop: StopRequest,
) -> dict[str, list[float]] | None:
    """Seconds of forward and backward, by side and round; the order of the sides turns round with every round.

    Before each step that counts a process takes one that does not, to have its data in the caches again. None if it
    was stopped.
    """
    request = {
        "model": model.__file__,
        "policy": str(Path(text).resolve()) if Path(text).is_file() else text,
        "shape": asdict(settings.shape),
        "batch": settings.batch,
        "device": settings.device,
        "dtype": settings.dtype,
        "threads": options.count,
    }
    times: dict[str, list[float]] = {side: [] for side in paths}
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(_Side(path, request, options, stack.enter_context(tempfile.TemporaryFile("w+"))))
            for name, path in paths.items()
        }
        for i in range(WARM_UP + options.rounds):
            for name, side in list(sides.items())[:: 1 if i % 2 == 0 else -1]:
                side.step()
                seconds = side.step()
                if i >= WARM_UP:
                    times[name].append(seconds)
            progress.stepped(label, i + 1, "")
            if stop:
                return None
    return times


def main(
    revision: Annotated[str, typer.Argument(metavar="REV", help="A commit of this repository.")],
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
    as_json: AsJson = False,
) -> None:
    """Step time of this checkout over another commit's, for each policy and width."""

    def run(options: Options, console: Console) -> Report:
        sizes = sizes_of(width, layers, tokens, device, dtype, model)
        return bench_revision(policies, sizes, revision, options, console)

    show(run, out=out, rounds=rounds, threads=threads, json=as_json)


if __name__ == "__main__":
    typer.run(main)
