"""Capture a model's graphs without generating code: the passes and the partitioner run, then the graph runs eagerly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

import metis_compile
from metis_compile import Captured, Policy
from metis_compile.backend import compile_graph, metis
from metis_compile.inspection.dry_run import run_eagerly
from metis_compile.options import read_options
from metis_compile.passes.graph.sites import Site


def eager_backend(policy: Policy | str, **options: Any) -> Callable[..., Any]:
    """backend="metis" with everything but Inductor's code generation."""
    config, patches = read_options({"policy": policy, "verify": True, **options}, None)

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        return compile_graph(gm, example_inputs, config, patches, inner_compile=run_eagerly)

    backend.reset = metis.reset  # type: ignore[attr-defined]
    return backend


def capture_graphs(
    model: Callable[..., Any], *args: Any, policy: Policy | str, grad: bool = True, **kwargs: Any
) -> Captured:
    """Runs the model once (and its backward) through `eager_backend` and returns what was captured."""
    torch.compiler.reset()
    with metis_compile.capture() as captured, torch.set_grad_enabled(grad):
        result = torch.compile(model, backend=eager_backend(policy), **kwargs)(*args)
        if grad:
            leaves = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
            sum(t.sum() for t in leaves if t.requires_grad).backward()
    return captured


def sites_of(captured: Captured) -> list[Site]:
    return [site for graph in captured.graphs for site in graph.sites]


def rows(captured: Captured) -> list[tuple[str, str, str, str]]:
    """(gemm, module, left role, right role) of every rewritten or resolvable product, in graph order."""
    return [(s.gemm, s.module, s.lhs.role, s.rhs.role) for s in sites_of(captured) if s.lhs and s.rhs]


def count(gm: fx.GraphModule | None, target: Any) -> int:
    assert gm is not None
    return sum(node.target is target for node in gm.graph.nodes)
