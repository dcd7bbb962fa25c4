"""Put plain-torch functions into a graph as the nodes that they trace to, traced once for inputs of one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from metis_compile.compat import enable_python_dispatcher, fx_graph_cse, select_decomp_table
from metis_compile.passes.graph.builder import GraphBuilder


class Inliner:
    """Traces functions of tensors for what nodes hold, and inserts what they do where the builder stands."""

    def __init__(self, builder: GraphBuilder, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self.builder, self.context = builder, context
        self._traced: dict[Any, fx.GraphModule] = {}

    def insert(
        self, key: Any, run: Callable[..., Sequence[torch.Tensor]], inputs: Sequence[Any], name: str
    ) -> list[fx.Node]:
        """Inserts `run(*inputs)`; returns the nodes of its results.

        key: equal for functions that do the same to equal inputs. inputs: nodes, or ints. name: how the new nodes'
        names begin. Raises RuntimeError for a function that holds constants of its own.
        """
        values = [i.meta["val"] if isinstance(i, fx.Node) else i for i in inputs]
        if any(_is_symbolic(v) for v in values):
            traced = self._trace(run, values)
        else:
            key = (key, tuple(_signature(v) for v in values))
            if key not in self._traced:
                self._traced[key] = self._trace(run, values)
            traced = self._traced[key]
        mapping: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True))
        results: Any = None
        for node in traced.graph.nodes:
            if node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), mapping.__getitem__)
                mapping[node] = self.builder.call(node.target, args, kwargs, name=f"{name}_{node.name}")
            elif node.op == "output":
                results = fx.node.map_arg(node.args[0], mapping.__getitem__)
            elif node.op != "placeholder":
                raise RuntimeError(f"{name} can't be traced: it holds a {node.op} {node.target!r}")
        return list(results)

    def _trace(self, run: Callable[..., Any], values: Sequence[Any]) -> fx.GraphModule:
        if self.builder.fake_mode is None:
            raise RuntimeError("the captured graph has no fake tensors, so nothing can be traced")
        with self.builder.fake_mode, enable_python_dispatcher(), self.context():
            traced = make_fx(run, decomposition_table=select_decomp_table())(*values)
        traced.graph = fx_graph_cse(traced.graph)
        traced.graph.eliminate_dead_code()
        return traced


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return any(isinstance(s, torch.SymInt) for s in (*value.shape, *value.stride()))
    return not isinstance(value, int)


def _signature(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.device)
    return value
