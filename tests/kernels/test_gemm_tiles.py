"""The tiles that the autotuner may time: they fit on their GPUs, and keep their sums in registers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cross_compile import CrossCompiled, cross_compile_generated
from long_tail import sampled
from packed_operands import SPECS, Packed, packed, product
from swizzled_scales import swizzled

from metis_compile.compat import autotune
from metis_compile.kernels.gemm.template_base import Config

pytest.importorskip("triton")

KIB = 1024
SHARED = {80: 163 * KIB, 90: 227 * KIB, 100: 227 * KIB, 120: 99 * KIB}  # that a block may have, of CUDA's documentation
SHARED_OF_8_6 = 99 * KIB
KEEPING = 3  # how many of those that are timed by default keep all in registers
Builder = Callable[..., dict[Config, CrossCompiled]]


@pytest.fixture
def build(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> Builder:
    """Compiles a product of [512, 512] operands with every configuration, or the first of them."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    from metis_compile.kernels.gemm import lowering

    lowering.register_gemm()
    monkeypatch.setattr(CachingAutotuner, "run", lambda *given, **how: None)  # it is the code that counts

    def built(
        capability: int, name: str, layout: str, *, first: int | None = None, swizzle: bool = False
    ) -> dict[Config, CrossCompiled]:
        a, b = operands(name, layout)
        if swizzle:
            a, b = swizzled(a), swizzled(b)
        configs = lowering.template_for(a.operand, b.operand, capability).configs(a.operand, b.operand, capability)
        configs = configs[:first]
        sources: list[str] = []

        def take(called: str, choices: list[Any], nodes: list[Any], layout: Any) -> Any:
            sources.extend(Path(choice.bmreq.module_path).read_text() for choice in choices[:-1])
            return autotune(called, choices[-1:], nodes, layout)

        triton_on_cpu.capability = capability
        monkeypatch.setattr(lowering, "configs_for", lambda given, m, n: configs)
        monkeypatch.setattr(lowering, "autotune", take)
        torch.compiler.reset()
        torch.compile(product)(a, b)
        kernels = [cross_compile_generated(source, capability) for source in sources]
        return {config: kernel for config, (kernel,) in zip(configs, (k.values() for k in kernels), strict=True)}

    return built


def operands(name: str, layout: str) -> tuple[Packed, Packed]:
    wgrad = layout == "wgrad"
    return packed((512, 512), SPECS[name], transposed=wgrad), packed((512, 512), SPECS[name], transposed=wgrad)


def assert_good(built: dict[Config, CrossCompiled]) -> None:
    """They load ahead of time, and most keep what they sum in registers."""
    from metis_compile.kernels.gemm.lowering import TRIED

    spilled = [kernel.spilled for kernel in built.values()][:TRIED]
    assert [config for config, kernel in built.items() if "cp.async.c" not in kernel.ptx] == []
    assert spilled.count(0) >= KEEPING, spilled


@pytest.mark.long
@pytest.mark.parametrize(("capability", "name"), [(90, "fp8"), (100, "mxfp8"), (120, "nvfp4"), (120, "mxfp8")])
def test_every_tile_fits(build: Builder, capability: int, name: str) -> None:
    """Of operands that lie along k, which take the most room; those of four bits take half of what FP8 does."""
    built = build(capability, name, "fprop")
    assert {c: kernel.shared for c, kernel in built.items() if kernel.shared > SHARED[capability]} == {}
    assert_good(built)
    if capability == 90:
        assert "ldmatrix" not in next(iter(built.values())).ptx, "Hopper multiplies FP8 from shared memory"


@pytest.mark.parametrize(
    ("name", "layout"),
    sampled(itertools.product(["nvfp4", "mxfp4", "mxfp8"], ["fprop", "wgrad"]), [("nvfp4", "fprop")]),
)
def test_every_tile_fits_with_swizzled_scales(build: Builder, name: str, layout: str) -> None:
    """They take room in shared memory, from where they are copied."""
    built = build(100, name, layout, swizzle=True)
    assert {c: kernel.shared for c, kernel in built.items() if kernel.shared > SHARED[100]} == {}
    assert_good(built)
    assert all("tcgen05.cp" in kernel.ptx for kernel in built.values())


@pytest.mark.parametrize(
    ("capability", "name", "layout"),
    sampled(
        [
            (80, "nvfp4", "fprop"),
            (90, "nvfp4", "fprop"),
            (90, "fp8", "wgrad"),
            (90, "fp8-128", "fprop"),
            (120, "mxfp8", "wgrad"),
        ],
        [(80, "nvfp4", "fprop"), (90, "fp8", "wgrad"), (120, "mxfp8", "wgrad")],
    ),
)
def test_tiles_that_are_timed_by_default(build: Builder, capability: int, name: str, layout: str) -> None:
    from metis_compile.kernels.gemm.lowering import TRIED

    built = build(capability, name, layout, first=TRIED)
    limit = SHARED_OF_8_6 if capability == 80 else SHARED[capability]
    assert max(kernel.shared for kernel in built.values()) <= limit
    assert_good(built)
