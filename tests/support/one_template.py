"""A product of packed operands, compiled with one configuration of one template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cross_compile import CrossCompiled, cross_compile_generated
from packed_operands import Packed
from torch._inductor.utils import run_and_get_code

from metis_compile.compat import autotune


class Compiler:
    """Compiles functions with one of the templates' configurations, the smallest unless one is given, and no other.

    plain: set to take the choice without a template.
    """

    plain = False

    def __init__(self, harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from metis_compile.kernels.gemm import lowering

        lowering.register_gemm()
        self.harness, self.config = harness, None
        monkeypatch.setattr(lowering, "configs_for", self._one)
        monkeypatch.setattr(lowering, "autotune", self._first)

    def _one(self, configs: Sequence[Any], m: int, n: int) -> Sequence[Any]:
        return [min(configs, key=lambda c: c.block_m * c.block_n * c.block_k) if self.config is None else self.config]

    def _first(self, name: str, choices: list[Any], nodes: list[Any], layout: Any, **how: Any) -> Any:
        self.choices = len(choices)
        return autotune(name, choices[-1:] if self.plain else choices[:1], nodes, layout, **how)

    def __call__(
        self,
        capability: int,
        function: Callable[..., Any],
        *args: Any,
        config: Any = None,
        dynamic: bool | None = None,
    ) -> Any:
        """The results and the code."""
        self.harness.capability, self.config = capability, config
        torch.compiler.reset()
        result, codes = run_and_get_code(torch.compile(function, dynamic=dynamic), *args)
        assert self.choices == 2
        return result, "\n".join(codes)


def configs(a: Packed, b: Packed, capability: int, grouped: str | None = None) -> Sequence[Any]:
    """Of the template that serves. grouped: of a grouped product, "rows" or "k"."""
    from metis_compile.kernels.gemm.lowering import template_for

    template = template_for(a.operand, b.operand, capability, grouped)
    return template.configs(a.operand, b.operand, capability)  # type: ignore[no-any-return]


def kernel_of(code: str, capability: int) -> CrossCompiled:
    ((name, built),) = cross_compile_generated(code, capability).items()
    assert name.startswith("triton_tem")
    return built
