"""What a compile has to do does not grow with the number of layers: kernels, and the functions that are traced."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from long_tail import sampled
from torch._inductor.async_compile import AsyncCompile

from metis_compile.bench.candidate import trainer
from metis_compile.bench.size import settings_of
from metis_compile.bench.start import kernels_in
from metis_compile.bench.turns import batch
from metis_compile.compat import inductor_config, inductor_sources
from metis_compile.passes.graph.inline import Inliner


@cache
def work(policy: str, layers: int) -> tuple[int, int]:
    """Kernels that Inductor writes for a step of a GPT, and functions that we trace. No kernel is compiled or run."""
    torch.compiler.reset()
    settings = settings_of(width=32, layers=layers, tokens=32, device="cpu", dtype="float32")
    made, traced = trainer(policy, settings), []
    trace = Inliner._trace
    with pytest.MonkeyPatch.context() as patch, inductor_config.patch(force_disable_caches=True):
        patch.setattr(AsyncCompile, "cpp_pybinding", lambda *_: lambda *args: None)
        patch.setattr(Inliner, "_trace", lambda self, *args: traced.append(args) or trace(self, *args))
        with inductor_sources() as sources:
            made.gradients(*batch(settings, 0))
    assert len(sources) == 2  # forward and backward
    return kernels_in(sources), len(traced)


@pytest.mark.parametrize("policy", sampled(["nvfp4", "metis"], ["metis"]))
def test_more_layers_need_no_more_kernels_than_they_do_in_inductor(policy: str) -> None:
    """From 4 layers on: up to there plain Inductor writes more with each (15, 16, 17 and, with 5 layers, 17 again)."""
    (plain, _), (plain_deeper, _) = work("high", 4), work("high", 6)
    (kernels, _), (kernels_deeper, _) = work(policy, 4), work(policy, 6)
    assert min(plain, kernels) > 5
    assert kernels_deeper - kernels <= plain_deeper - plain


def test_more_layers_need_no_other_traces() -> None:
    (_, traces), (_, traces_deeper) = work("metis", 4), work("metis", 6)
    assert traces_deeper == traces > 0
