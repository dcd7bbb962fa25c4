"""The rewritten graphs of a model under a policy, without any code being generated."""

from typing import Any

import torch
from torch import Tensor, fx, nn

import metis_compile
from metis_compile.backend import compile_graph
from metis_compile.captured import CapturedGraph
from metis_compile.config import read_options
from metis_compile.explanation import run_eagerly

__all__ = ["rewritten_graphs"]


def rewritten_graphs(model: nn.Module, tokens: Tensor, policy: str) -> list[CapturedGraph]:
    """What `capture()` shows of one forward of a plain ``model`` on int64 [batch, context] tokens."""
    config, patches = read_options({"policy": policy}, None)

    def backend(gm: fx.GraphModule, example_inputs: Any, **_: Any) -> Any:
        return compile_graph(gm, example_inputs, config, patches, listed=False, inner_compile=run_eagerly)

    torch.compiler.reset()
    with metis_compile.capture() as captured:
        torch.compile(model, backend=backend)(tokens)
    torch.compiler.reset()
    return captured.graphs
