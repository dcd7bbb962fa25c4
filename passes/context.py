"""What a pass is given, what it returns, and how a list of passes is run: timed, logged, verified, traced.

A pass is a function of one `PassContext` that changes `context.graph` in place and returns a `PassResult`. Its name is
the function's. `pipeline.py` lists the passes in order; nothing is registered anywhere else.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx

from metis_compile.compat import OpOverload, compile_phase, lowers_to_triton, trace_structured
from metis_compile.numerics import materializing
from metis_compile.ops.buffers import MATERIALIZE
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.options import Config
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.inline import Inliner
from metis_compile.passes.graph.sites import GraphInputs, Site
from metis_compile.passes.verify import broken, verify

log = logging.getLogger("metis_compile.passes")


@dataclass(kw_only=True)
class PassContext:
    """One graph on its way through a list of passes.

    graph: the joint graph, or after the partitioner the forward or the backward graph. sites: its matrix products,
    once `find` has run; empty while lowering. inputs: what the joint graph's inputs are.
    """

    graph: fx.Graph
    config: Config
    inputs: GraphInputs = field(default_factory=lambda: GraphInputs(parameters={}))
    sites: list[Site] = field(default_factory=list)

    @property
    def cpu_kernels(self) -> bool:
        """Whether what lies on the CPU goes to the C++ kernels."""
        return self.config.cpu_kernels and not lowers_to_triton(torch.device("cpu"))

    @property
    def calls_cpu_kernels(self) -> bool:
        """Whether there is anything in the graph for these: what is quantized, or decoded."""
        return self.cpu_kernels and any(node.target in (QUANTIZE, DEQUANTIZE) for node in self.graph.nodes)

    @cached_property
    def builder(self) -> GraphBuilder:
        """One builder for all lowering passes of this graph."""
        return GraphBuilder(self.graph)

    @cached_property
    def inliner(self) -> Inliner:
        """One inliner for all lowering passes, so that equal numerics are traced once."""
        return Inliner(self.builder, lambda: materializing(MATERIALIZE))


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """What a pass did: how many nodes or sites it changed, and what it left, each as (what, why)."""

    changed: int = 0
    left: Sequence[tuple[str, str]] = ()


Pass = Callable[[PassContext], PassResult]


def run_passes(passes: Sequence[Pass], context: PassContext, stage: str) -> None:
    """Runs the passes in order on `context.graph`. stage: "joint", "lowering", ...: where in the compile this is.

    Each is a phase of compile time, logs one line with what it did to the count of each operator, hands the graph
    before and after to TORCH_TRACE, and, where the configuration says so, is followed by `verify`, which raises
    GraphError.
    """
    given = broken(context.graph) if context.config.verify else ()
    for each in passes:
        name = each.__name__
        before = _operators(context.graph) if log.isEnabledFor(logging.INFO) else Counter()
        trace(f"metis_{stage}_{name}_before", context.graph)
        with compile_phase(f"metis_{name}"):
            result = each(context)
        trace(f"metis_{stage}_{name}_after", context.graph)
        if log.isEnabledFor(logging.INFO):
            log.info("%s %s: %s", stage, name, _line(result, before, _operators(context.graph)))
            for what, why in result.left:
                log.debug("%s %s left %s: %s", stage, name, what, why)
        if context.config.verify:
            verify(context.graph, f"{stage} pass {name}", given)


def trace(name: str, graph: fx.Graph) -> None:
    """Puts a graph, as Python text, where TORCH_TRACE and TORCH_LOGS="+metis_compile" find it."""

    def text() -> str:
        return fx.GraphModule(graph.owning_module or {}, graph).print_readable(print_output=False)

    trace_structured("artifact", lambda: {"name": name, "encoding": "string"}, payload_fn=text)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s\n%s", name, text())


def _operators(graph: fx.Graph) -> Counter[str]:
    return Counter(_name(node.target) for node in graph.nodes if node.op == "call_function")


def _name(target: Any) -> str:
    """`mm` of aten.mm.default, `metis.quantize` of ours, a function's own name."""
    if not isinstance(target, OpOverload):
        return str(getattr(target, "__name__", target))
    return target._schema.name.replace("::", ".").removeprefix("aten.")


def _line(result: PassResult, before: Counter[str], after: Counter[str]) -> str:
    """`12 changed, 1 left; mm 12 -> 4, metis.quantize 0 -> 8`."""
    said = f"{result.changed} changed" + (f", {len(result.left)} left" if result.left else "")
    names = [name for name in sorted({*before, *after}) if before[name] != after[name] and name != "getitem"]
    return "; ".join([said, *([", ".join(f"{n} {before[n]} -> {after[n]}" for n in names)] if names else [])])
