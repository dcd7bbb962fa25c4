"""A forward or backward graph, as it is before it is lowered, of which a part can be run operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

from torch import fx

from metis_compile.compat import OpOverload
from metis_compile.numerics import QuantSpec
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.ops.state import LOAD
from metis_compile.statistics.quantized import parts_of, values_of

__all__ = ["Half", "Wanted"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """Nodes whose values are wanted together, and what is called with them, by name, as soon as all are there."""

    names: frozenset[str]
    visit: Callable[[Mapping[str, Any]], None]


class Half:
    """A copy of the graph; what Inductor does to the original does not reach it."""

    def __init__(self, gm: fx.GraphModule, cpu_kernels: bool) -> None:
        copied: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        output = graph.graph_copy(gm.graph, copied)
        self.module, self.cpu_kernels = gm, cpu_kernels
        self.order = {node.name: i for i, node in enumerate(graph.nodes)}
        self.nodes = {node.name: node for node in graph.nodes}
        self.inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
        given: Any = output
        self.outputs = [node.name if isinstance(node, fx.Node) else None for node in given]
        self._graph = graph
        self.written = [name for name in self.inputs if any(writes(user) for user in self.nodes[name].users)]

    def has(self, name: str) -> bool:
        return name in self.nodes

    def calls(self, name: str) -> bool:
        """Whether the node is computed here, and is no input."""
        return name in self.nodes and self.nodes[name].op == "call_function"

    def node(self, name: str) -> fx.Node:
        return self.nodes[name]

    def loaded(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What the graph reads of what lives across steps, as it is now: the graph itself moves it on."""
        reads = self._graph.find_nodes(op="call_function", target=LOAD)
        return {node.name: LOAD(known[node.args[0].name], *node.args[1:]) for node in reads}

    def run(self, known: Mapping[str, Any], wanted: Sequence[Wanted]) -> None:
        """Computes what is wanted from the values that are known, and visits it. Values are freed after their last use.

        Raises RuntimeError where that would write to one of the graph's inputs.
        """
        steps = self._steps(known, wanted)
        waiting: list[tuple[set[str], Wanted]] = [(set(each.names) - known.keys(), each) for each in wanted]
        last_use = self._last_uses(steps, wanted)
        values = dict(known)
        waiting = list(_visit_ready(waiting, values))
        for place, node in enumerate(steps):
            values[node.name] = self._value(node, values)
            for entry in waiting:
                entry[0].discard(node.name)
            waiting = list(_visit_ready(waiting, values))
            for name in last_use.get(place, ()):
                del values[name]

    def _steps(self, known: Mapping[str, Any], wanted: Iterable[Wanted]) -> list[fx.Node]:
        """The nodes to compute, in the graph's order."""
        needed: set[fx.Node] = set()
        stack = [self.nodes[name] for each in wanted for name in each.names]
        while stack:
            node = stack.pop()
            if node in needed or node.name in known:
                continue
            if node.op == "placeholder":
                raise RuntimeError(f"metis: the graph's input {node.name} is not known")
            if writes(node):
                raise RuntimeError(f"metis: {node.name} writes to its inputs, and can't be run a second time")
            needed.add(node)
            stack += node.all_input_nodes
        return sorted(needed, key=lambda node: self.order[node.name])

    def _last_uses(self, steps: Sequence[fx.Node], wanted: Iterable[Wanted]) -> dict[int, list[str]]:
        """Place of a step -> what no later one reads, and no visit that is to come."""
        place = {node.name: i for i, node in enumerate(steps)}
        last = dict(place)
        for i, node in enumerate(steps):
            for read in node.all_input_nodes:
                if read.name in last:
                    last[read.name] = i
        for each in wanted:
            computed = [place[name] for name in each.names if name in place]
            for name in each.names & place.keys():
                last[name] = max(last[name], *computed)
        found: dict[int, list[str]] = {}
        for name, i in last.items():
            found.setdefault(i, []).append(name)
        return found

    def _value(self, node: fx.Node, values: Mapping[str, Any]) -> Any:
        if node.op == "get_attr":
            found: Any = self.module
            for part in str(node.target).split("."):
                found = getattr(found, part)
            return found
        args: Any
        kwargs: Any
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n.name])
        if node.target is QUANTIZE and not kwargs.get("swizzled"):
            x, text, axis, *random = args
            amax = kwargs.get("amax")
            return parts_of(x, QuantSpec.parse(text), axis, *random, amax=amax, cpu_kernels=self.cpu_kernels)
        if node.target is DEQUANTIZE:
            parts, text, axis, length = args
            return values_of(parts, QuantSpec.parse(text), axis, length, cpu_kernels=self.cpu_kernels)
        target: Any = node.target
        return target(*args, **kwargs)


def _visit_ready(
    waiting: Iterable[tuple[set[str], Wanted]], values: Mapping[str, Any]
) -> Iterator[tuple[set[str], Wanted]]:
    """Visits what misses nothing any more, and gives the rest."""
    for entry in waiting:
        if entry[0]:
            yield entry
        else:
            entry[1].visit(values)


def writes(node: fx.Node) -> bool:
    """Whether a call changes one of its arguments."""
    return isinstance(node.target, OpOverload) and node.target is not getitem and node.target._schema.is_mutable
