"""Everything that waits for a GPU, in one command that may be cut off at any moment.

    python benchmarks/on_gpu.py --out FOLDER --minutes 9

Needs a CUDA GPU, torch 2.11 or newer with its triton, and a C++ compiler; nothing is installed and no network is used.
Packages that may be missing on a bare machine travel as wheels in a folder, given by --wheels: tomlkit; for the tests
expecttest and gfloat. The package is taken from this checkout.

Steps, in this order, each with a time limit of its own; what is left of the time goes to the last:

    smoke     60 s   one linear trained on the GPU under nvfp4, mxfp8, fp8 and best, against the CPU
    tests    180 s   the tests marked gpu: one of each kernel and format first, then the rest
    kernels  120 s   `metis bench gemm` and `metis bench quantize` on four shapes of Llama-3-8B
    block    180 s   `metis bench step` and `metis bench memory` of a Llama-3-8B block: fp8, nvfp4, best
    gpt2       -     a GPT of GPT-2's size, 124M, in full precision beside best, for as many steps as fit

After every command FOLDER/results.json is written anew: its exit code, its seconds, the end of what it printed, and the
JSON of each benchmark; the outcome of each test goes to FOLDER/tests.jsonl as it comes. `--steps smoke,tests` runs some
alone. `--rehearse` runs all of it on a CPU with tiny sizes, to find what is wrong before a GPU is at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Products of Llama-3-8B at 8192 tokens, as m x n x k: attention's output, keys, the MLP up and down.
SHAPES = ("8192x4096x4096", "8192x1024x4096", "8192x14336x4096", "8192x4096x14336")
TINY_SHAPES = ("64x64x64", "64x32x96")
POLICIES = ("fp8", "nvfp4", "best")
LIMITS = {"smoke": 60.0, "tests": 180.0, "kernels": 120.0, "block": 180.0, "gpt2": 3600.0}  # seconds
GRACE = 10.0  # between SIGTERM, after which a training run saves what it has, and SIGKILL
TAIL = 4000  # characters of a command's output that are kept in results.json

SMOKE = """
import json, sys, torch
from torch import nn
from metis_compile.backend import compile_graph
from metis_compile.inspection.dry_run import run_eagerly
from metis_compile.options import read_options
device, found = sys.argv[1], {}

def reference(policy):  # the rewritten graphs, run eagerly on the CPU
    config, patches = read_options({"policy": policy, "cpu_kernels": False}, None)
    return lambda gm, inputs, **_: compile_graph(gm, inputs, config, patches, inner_compile=run_eagerly)

for policy in ("nvfp4", "mxfp8", "fp8", "best"):
    losses = {}
    for where in ("cpu", "device"):
        torch.manual_seed(0)
        torch.compiler.reset()
        model = nn.Linear(256, 128)
        x, y = torch.randn(512, 256), torch.randn(512, 128)
        if where == "device":
            model, x, y = model.to(device), x.to(device), y.to(device)
        if where == "cpu":
            step = torch.compile(model, backend=reference(policy))
        else:
            step = torch.compile(model, backend="metis", options={"policy": policy})
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        losses[where] = []
        for _ in range(5):
            loss = (step(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[where].append(float(loss.detach()))
    apart = max(abs(a - b) / a for a, b in zip(losses["cpu"], losses["device"]))
    found[policy] = {"cpu": losses["cpu"], "device": losses["device"], "apart": apart}
    print(policy, "losses apart by", f"{apart:.1e}", flush=True)
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)
# Bases start from rows at random and rounding at random draws from each device's own generator.
assert all(row["apart"] < 0.02 for row in found.values()), found
"""

# A pytest plugin: writes each outcome as it comes, and runs first what shows most.
PLUGIN = '''
import json, os

def kind(item):
    """One of each kernel and format: the test's file and function, and the first word of its parameters."""
    name = getattr(item, "originalname", item.name)
    parameters = item.name[len(name):]
    return item.path.name, name, parameters.split("-")[0].split(" ")[0]

def pytest_collection_modifyitems(items):
    seen, first, rest = set(), [], []
    for item in items:
        (rest if kind(item) in seen else first).append(item)
        seen.add(kind(item))
    items[:] = first + rest

def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        line = {"test": report.nodeid, "when": report.when, "outcome": report.outcome, "seconds": report.duration}
        if report.failed:
            line["error"] = str(report.longrepr)[-2000:]
        with open(os.environ["METIS_TEST_OUTCOMES"], "a") as file:
            file.write(json.dumps(line) + "\\n")
'''


class Run:
    """The steps, what each gave, and how much time is left."""

    def __init__(self, out: Path, seconds: float, rehearse: bool, wheels: Path | None) -> None:
        self.out, self.end, self.rehearse = out, time.monotonic() + seconds, rehearse
        out.mkdir(parents=True, exist_ok=True)
        self.device = "cpu" if rehearse else "cuda"
        self.results: dict[str, Any] = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "steps": {}}
        self.paths = [_entry_point(), str(ROOT), *_unpacked(wheels)]
        self.results["machine"] = self._machine()
        self.write()

    def _machine(self) -> dict[str, Any]:
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        return {"gpu": gpu, "processor": platform.processor() or platform.machine(), **versions}

    def write(self) -> None:
        """Anew, in one step: a reader never sees half of it."""
        part = self.out / "results.json.part"
        part.write_text(json.dumps(self.results, indent=1) + "\n")
        part.replace(self.out / "results.json")

    def command(self, step: str, name: str, arguments: Sequence[str], limit: float, **environment: str) -> int | None:
        """Runs one command for `limit` seconds at most; None where no time is left."""
        limit = min(limit, self.end - time.monotonic())
        if limit < 5:
            self._note(step, name, {"skipped": "no time left"})
            return None
        path = os.pathsep.join([*self.paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                arguments,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code, timed_out = _wait(process, limit)
            log.seek(0)
            said = log.read()
        with (self.out / f"{step}.log").open("a") as file:
            file.write(f"$ {name}\n{said}\n")
        seconds = round(time.monotonic() - started, 1)
        self._note(step, name, {"code": code, "timed_out": timed_out, "seconds": seconds, "said": said[-TAIL:]})
        return code

    def _note(self, step: str, name: str, what: dict[str, Any]) -> None:
        self.results["steps"].setdefault(step, {})[name] = what
        self.write()
        print(f"{step}: {name}: " + ", ".join(f"{k} {v}" for k, v in what.items() if k != "said"), flush=True)

    def keep(self, step: str, name: str, path: Path) -> None:
        """Takes a JSON file into the results."""
        if path.is_file():
            try:
                self.results["steps"][step][name]["json"] = json.loads(path.read_text())
            except ValueError as error:
                self.results["steps"][step][name]["json_error"] = str(error)
            self.write()


def smoke(run: Run, limit: float) -> None:
    path = Path(tempfile.mkdtemp()) / "smoke.json"
    run.command("smoke", "train", [sys.executable, "-c", SMOKE, run.device, str(path)], limit)
    run.keep("smoke", "train", path)


def tests(run: Run, limit: float) -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "metis_on_gpu_plugin.py").write_text(PLUGIN)
    run.paths.append(str(folder))
    outcomes = run.out / "tests.jsonl"
    outcomes.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "metis_on_gpu_plugin", "-p", "no:cacheprovider", "-m", "gpu"]
    command += ["tests/kernels"] if run.rehearse else ["tests/kernels", "tests/backend", "tests/bench"]
    run.command("tests", "pytest", command, limit, METIS_TEST_OUTCOMES=str(outcomes))
    if outcomes.is_file():
        lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
        counts = {kind: sum(line["outcome"] == kind for line in lines) for kind in ("passed", "failed", "skipped")}
        run.results["steps"]["tests"]["pytest"]["outcomes"] = counts
        run.results["steps"]["tests"]["pytest"]["failed"] = [x for x in lines if x["outcome"] == "failed"][:20]
        run.write()


def kernels(run: Run, limit: float) -> None:
    end = time.monotonic() + limit
    shapes = TINY_SHAPES if run.rehearse else SHAPES
    for shape in shapes:
        for kind in ("quantize", "gemm"):
            if run.rehearse and kind == "gemm":
                continue  # it has no CPU form
            given = shape if kind == "gemm" else "x".join((shape.split("x")[0], shape.split("x")[2]))
            _bench(run, "kernels", f"{kind} {given}", [kind, "--shape", given], end)


def block(run: Run, limit: float) -> None:
    end = time.monotonic() + limit
    size = ["--model", "llama-8b-block"]
    if run.rehearse:
        size = ["--width", "64", "--layers", "1", "--tokens", "256", "--dtype", "float32"]
    for kind, rounds in (("step", "8"), ("memory", "1")):
        for policy in POLICIES[-1:] if run.rehearse else POLICIES:
            _bench(run, "block", f"{kind} {policy}", [kind, policy, *size, "--rounds", rounds], end)


def gpt2(run: Run, limit: float) -> None:
    size = {"width": 768, "layers": 12, "heads": 12, "context": 1024, "batch": 16, "steps": 2000}
    if run.rehearse:
        size = {"width": 32, "layers": 1, "heads": 2, "context": 32, "batch": 2, "steps": 3}
    out = run.out / "gpt2"
    command = [sys.executable, "-m", "metis_compile.cli", "train", "--policy", "best", "--device", run.device]
    command += ["--out", str(out), "--checkpoint-every", "100000"]
    command += [part for name, value in size.items() for part in (f"--{name}", str(value))]
    run.command("gpt2", "train", command, min(limit, run.end - time.monotonic() - GRACE - 5))
    run.keep("gpt2", "train", out / "report.json")


STEPS: dict[str, Callable[[Run, float], None]] = {
    "smoke": smoke,
    "tests": tests,
    "kernels": kernels,
    "block": block,
    "gpt2": gpt2,
}


def _bench(run: Run, step: str, name: str, arguments: Sequence[str], end: float) -> None:
    out = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "metis_compile.cli", "bench", *arguments, "--device", run.device]
    command += ["--out", str(out), *(["--rounds", "2"] if run.rehearse else [])]
    if run.command(step, name, command, end - time.monotonic()) is not None:
        run.keep(step, name, out / f"{arguments[0]}.json")


def _wait(process: subprocess.Popen[bytes], limit: float) -> tuple[int | None, bool]:
    """The exit code and whether it ran past its limit; its whole process group is ended then."""
    try:
        return process.wait(limit), False
    except subprocess.TimeoutExpired:
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            os.killpg(process.pid, number)
            try:
                return process.wait(patience), True
            except subprocess.TimeoutExpired:
                continue
        return None, True


def _entry_point() -> str:
    """A folder with what an installation would say of this checkout: that "metis" is a backend."""
    folder = Path(tempfile.mkdtemp())
    about = folder / "metis_compile-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: metis-compile\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text("[torch_dynamo_backends]\nmetis = metis_compile.backend:metis\n")
    return str(folder)


def _unpacked(wheels: Path | None) -> list[str]:
    """Wheels of plain Python are importable as they are."""
    return [] if wheels is None else [str(path) for path in sorted(wheels.resolve().glob("*.whl"))]


def main() -> int:
    """Runs the steps; 0 if every command of those that ran ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and the logs")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--steps", default=",".join(STEPS), help="some of them, by name")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the machine lacks")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes")
    given = parser.parse_args()
    names = given.steps.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}; the steps are {', '.join(STEPS)}")
    run = Run(given.out.resolve(), given.minutes * 60, given.rehearse, given.wheels)
    if not given.rehearse and run.results["machine"]["gpu"] is None:
        parser.error("torch finds no CUDA GPU; --rehearse runs the steps on a CPU")
    for name in names:
        STEPS[name](run, LIMITS[name] * (10 if given.rehearse else 1))
    codes = [what.get("code") for step in run.results["steps"].values() for what in step.values()]
    return 0 if all(code == 0 for code in codes) else 1


if __name__ == "__main__":
    sys.exit(main())
