"""`.ci/on-cpu`: tests as another CPU would run them."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/on-cpu"
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="for x86-64 CPUs")


def on_cpu(cpu: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), cpu, sys.executable, "-c", code], capture_output=True, text=True, check=False)


@x86
def test_avx2_reaches_torch_inductor_and_our_own_choice_of_products() -> None:
    done = on_cpu(
        "avx2",
        "import torch; from torch._inductor import config; from metis_compile.compat import bf16_gemm; "
        "print(torch.backends.cpu.get_cpu_capability(), config.cpp.march, bf16_gemm())",
    )
    assert done.stdout.split() == ["AVX2", "x86-64-v3", "None"], done.stderr


@x86
def test_compiled_libraries_are_kept_apart() -> None:
    """What was compiled for one CPU is not loaded for another: the cache's key has the compiler's flags."""
    code = (
        "import torch; from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions as O; "
        "from torch._inductor.cpu_vec_isa import pick_vec_isa; "
        "print(CppBuilder(name='o', sources='i', BuildOption=O(vec_isa=pick_vec_isa())).get_command_line())"
    )
    native, avx2 = (on_cpu(cpu, code) for cpu in ("native", "avx2"))
    assert "-march=x86-64-v3" in avx2.stdout, avx2.stderr
    assert "-march=x86-64-v3" not in native.stdout
    assert native.stdout


@pytest.mark.parametrize("cpu", ["sse2", ""])
def test_an_unknown_cpu(cpu: str) -> None:
    done = on_cpu(cpu, "")
    assert done.returncode == 2
    assert done.stderr == f"CPU must be native, avx2 or avx512, got '{cpu}'\n"
