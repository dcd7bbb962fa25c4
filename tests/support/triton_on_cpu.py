"""The fixture `triton_on_cpu`: Inductor makes Triton kernels, and Triton's interpreter runs them on CPU tensors.

Pointwise and reduction kernels, and templates with their autotuning and their epilogues. Tests that use it run in a
process of their own: see `interpreted_tests`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch._inductor import graph as inductor_graph
from torch._inductor.graph import GraphLowering

from metis_compile.compat import inductor_config

CONFIG = {
    "cpu_backend": "triton",
    "compile_threads": 1,
    "force_disable_caches": True,  # their keys know nothing of the interpreter
    "autotune_local_cache": False,
    "max_autotune_gemm": True,
    "autotune_in_subproc": False,
    "benchmark_epilogue_fusion": False,
}


class TritonOnCPU:
    """What a test can ask for. capability: the GPU that lowerings see, 90 for compute capability 9.0."""

    capability = 90


@pytest.fixture
def triton_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonOnCPU]:
    """Inductor makes Triton kernels for the CPU, run by Triton's interpreter; every buffer starts as NaN."""
    triton = pytest.importorskip("triton")
    import triton_interpreter

    triton_interpreter.install()
    state = TritonOnCPU()
    monkeypatch.setattr(triton.runtime.driver, "_active", _driver(triton, state))
    empty = torch._C._dynamo.guards._empty_strided_cpu
    monkeypatch.setattr(torch._C._dynamo.guards, "_empty_strided_cpu", lambda *args: _poisoned(empty(*args)))
    # a CUDA tensor without dimensions is passed by address, a CPU tensor by value
    monkeypatch.setattr(GraphLowering, "is_unspec_arg", lambda self, name: False)
    # of a CUDA tensor Inductor knows the alignment, and copies what comes unaligned; of a CPU tensor it assumes none
    monkeypatch.setattr(inductor_graph, "should_assume_input_aligned", lambda example: True)
    with inductor_config.patch(CONFIG), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Could not find an active CPU backend")
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        yield state


def _poisoned(buffer: torch.Tensor) -> torch.Tensor:
    if buffer.dtype != torch.bool:
        torch.as_strided(buffer, (buffer.untyped_storage().nbytes() // buffer.itemsize,), (1,)).view(torch.uint8).fill_(
            255
        )
    return buffer


def _driver(triton: Any, state: TritonOnCPU) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class Driver(DriverBase):  # type: ignore[misc]
        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise NotImplementedError(f"kernels are interpreted here, no launcher is compiled: no C++ type for {ty!r}")

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", state.capability, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_device_capability(self, device: int = 0) -> tuple[int, int]:
            return divmod(state.capability, 10)

        def get_benchmarker(self) -> Callable[..., Any]:
            return _benchmark

    return Driver()


def _benchmark(call: Callable[[], Any], *, quantiles: Sequence[float] | None = None, **_: Any) -> Any:
    start = time.perf_counter()
    call()
    milliseconds = (time.perf_counter() - start) * 1e3
    return milliseconds if quantiles is None else [milliseconds] * len(quantiles)
