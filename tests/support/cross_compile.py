"""Compile Triton kernels for GPUs that need not be there, down to the machine code that ptxas makes.

It happens in a process of its own, which is not interpreting and whose crashes (a failed assertion of the compiler
ends the process) are errors of a test.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

CAPABILITIES = (80, 90, 100, 120)


class CrossCompiled(NamedTuple):
    """ptx: the instructions, before ptxas. shared: bytes of shared memory that a block takes. spilled: bytes of a
    thread's registers that ptxas keeps in memory."""

    ptx: str
    shared: int
    spilled: int


class CrossCompileError(Exception):
    """What the compiler said."""


def cross_compile(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    capability: int,
    *,
    aligned: Sequence[str] | None = None,
    num_warps: int = 4,
    num_stages: int = 3,
    enable_fp_fusion: bool = True,
) -> CrossCompiled:
    """Compiles a `@triton.jit` function of a module for compute capability 8.0 (80), 9.0, 10.0 or 12.0.

    signature: the types of the other parameters, such as "*u8", "*fp32", "i32", by name. constexprs: values by name.
    aligned: the parameters that are multiples of 16, None for all pointers. Raises CrossCompileError.
    """
    source = Path(kernel.fn.__code__.co_filename)
    module = kernel.fn.__module__
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    return _worker().compile(
        {
            "module": module if module.startswith("metis_compile.") else str(source),
            "name": kernel.fn.__name__,
            "signature": dict(signature),
            "constexprs": dict(constexprs),
            "aligned": list(pointers if aligned is None else aligned),
            "capability": capability,
            "options": {
                "num_warps": num_warps,
                "num_stages": num_stages,
                "enable_fp_fusion": enable_fp_fusion,
            },
        }
    )


def cross_compile_generated(source: str, capability: int) -> dict[str, CrossCompiled]:
    """Compiles every kernel in a module that Inductor wrote, as Inductor would have it; the results by kernel name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "generated.py")
        path.write_text(source)
        return _worker().compile_all({"generated": str(path), "capability": capability})


class _Worker:
    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, job: Mapping[str, Any]) -> Any:
        if self.process is None:
            self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.process = None
            self.log.seek(0)
            raise CrossCompileError(f"the compiler ended with exit code {code}: {self.log.read()[-3000:]}")
        answer = json.loads(line)
        if isinstance(answer, str):
            raise CrossCompileError(answer)
        return answer

    def compile(self, job: Mapping[str, Any]) -> CrossCompiled:
        return CrossCompiled(*self.ask(job))

    def compile_all(self, job: Mapping[str, Any]) -> dict[str, CrossCompiled]:
        return {name: CrossCompiled(*result) for name, result in self.ask(job).items()}


@cache
def _worker() -> _Worker:
    return _Worker()


# In the worker: a line of JSON in, a line of JSON out; an error is a string.


def _compile(job: dict[str, Any]) -> Any:
    from triton.compiler import ASTSource

    if "generated" in job:
        return _compile_generated(job["generated"], job["capability"])
    kernel = getattr(_load(job["module"]), job["name"])
    signature = {name: job["signature"].get(name, "constexpr") for name in kernel.arg_names}
    attrs = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in job["aligned"]}
    return _build(ASTSource(kernel, signature, job["constexprs"], attrs), job["capability"], job["options"])


def _compile_generated(path: str, capability: int) -> dict[str, Any]:
    from triton.compiler import ASTSource

    results = {}
    for name, kernel in _kernels_of(path).items():
        meta = kernel._create_compile_meta(kernel.configs[0])
        source = ASTSource(kernel.fn, meta["signature"], meta["constants"], meta["configs"][0])
        results[name] = _build(source, capability, kernel._create_compile_options(kernel.configs[0], meta))
    return results


def _kernels_of(path: str) -> dict[str, Any]:
    """The Triton kernels of a module that Inductor wrote, not compiled."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    kernels: dict[str, Any] = {}

    def take(self: Any, name: str, source: str, *_: Any, **__: Any) -> None:
        kernels[name] = getattr(PyCodeCache.load(source), name)

    replaced = {"triton": take, "wait": lambda self, scope: None}
    originals = {name: getattr(AsyncCompile, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(AsyncCompile, name, function)
        module = _load(path)
    finally:
        for name, function in originals.items():
            setattr(AsyncCompile, name, function)
    return kernels or {name: k for name, k in vars(module).items() if isinstance(k, CachingAutotuner)}


def _build(source: Any, capability: int, options: dict[str, Any]) -> tuple[str, int, int]:
    import triton
    from triton.backends.compiler import GPUTarget

    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return built.asm["ptx"], built.metadata.shared, _spilled(built.asm["cubin"])


def _spilled(cubin: bytes) -> int:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"STACK:(\d+)", usage)))


def _load(module: str) -> Any:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    for line in sys.stdin:
        try:
            answer = _compile(json.loads(line))
        except Exception:
            answer = traceback.format_exc()[-6000:]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
