"""Captured graphs as functions of tensors alone: what they draw, keep and change becomes arguments and results.

- The seed that the graph draws is an argument.
- What lives across steps, which `metis::load` reads, is an argument, and what `metis::store_` writes is a result.
- A buffer or input that the model changes (`aten.copy_`) has its new value as a result.
- What forward would save for backward and was given itself (a parameter, a state) backward takes from where forward
  did; what nothing reads is no argument.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from metis_compile.compat import OpOverload, aot_input, aot_output
from metis_compile.mlir.attention import without_dropout
from metis_compile.mlir.errors import ExportError
from metis_compile.mlir.signature import Kind, Port, Source
from metis_compile.mlir.sites import place_of
from metis_compile.numerics.noise import SEED_BITS
from metis_compile.ops.rank import OF_RANK
from metis_compile.ops.state import KEEP, LOAD, STORE
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.record import CapturedGraph

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Functional:
    """A graph that takes and returns tensors and does nothing else."""

    name: str
    graph: fx.GraphModule
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def functional_graphs(captured: CapturedGraph, sources: Sequence[Source]) -> list[Functional]:
    """Forward, and backward where there is one. sources: of the inputs of Dynamo's graph.

    Raises ExportError, naming the place, for sizes that are symbolic and for calls that draw random numbers or change
    what they are given in other ways.
    """
    assert captured.forward is not None
    inputs = [*sources, Source(kind="state", name="forward"), Source(kind="state", name="backward")]
    forward = _Graph(captured, "forward", inputs, {})
    programs = [forward.functional()]
    if captured.backward is not None:
        programs.append(_Graph(captured, "backward", inputs, forward.saved).functional())
    return programs


class _Graph:
    def __init__(
        self, captured: CapturedGraph, stage: str, sources: Sequence[Source], known: Mapping[str, Port]
    ) -> None:
        """known: what forward saved, by the name of the node."""
        self.captured, self.stage, self.sources, self.known = captured, stage, sources, known
        self.gm = copy_module(getattr(captured, stage))
        self.graph = self.gm.graph
        self.builder = GraphBuilder(self.graph)
        self.ports: dict[fx.Node, Port] = {}
        self.saved: dict[str, Port] = {}
        returned: Any = self.graph.output_node().args[0]
        self._names = [getattr(value, "name", "") for value in returned]  # backward's, too
        self._changed: dict[fx.Node, fx.Node] = {}  # input -> its new value
        self._kept: dict[tuple[Any, Any], fx.Node] = {}  # site and part -> the input that holds it

    def functional(self) -> Functional:
        for node in self.graph.find_nodes(op="placeholder"):
            self.ports[node] = self._input_port(node)
        for node in list(self.graph.nodes):
            if node.op == "call_function":
                self._call(node)
        outputs = self._outputs()
        self.graph.eliminate_dead_code()
        for node in self.graph.find_nodes(op="placeholder"):
            if not node.users:
                self.graph.erase_node(node)
        self.graph.lint()
        self.gm.recompile()
        inputs = tuple(self.ports[n] for n in self.graph.find_nodes(op="placeholder"))
        return Functional(name=self.stage, graph=self.gm, inputs=inputs, outputs=tuple(outputs))

    def _input_port(self, node: fx.Node) -> Port:
        if node.name in self.known:
            return self.known[node.name]
        position, tangent_of, name = aot_input(node.meta.get("desc"))
        if name is not None:
            return self._port(node, "parameter", name)
        if tangent_of is not None:
            return self._port(node, "tangent", self._of(*tangent_of))
        if position is None or position >= len(self.sources):
            raise ExportError(f"the {self.stage} graph has an input that is not the model's: {node.name}")
        return self._port(node, self.sources[position].kind, self.sources[position].name)

    def _of(self, output: int | None, source: int | None) -> str:
        """What a tangent is of, or a result: an output by its number, a changed input by its name."""
        if source is not None:
            return self.sources[source].name
        return "base" if output is None else str(output)  # the base that several outputs are views of

    def _port(self, node: fx.Node, kind: Kind, name: str) -> Port:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise ExportError(
                f"{kind} {name} of {self.stage} is a {type(value).__name__}; only tensors can be exported"
            )
        if not all(isinstance(size, int) for size in value.shape):
            raise ExportError(
                f"{kind} {name} of {self.stage} has the symbolic shape {tuple(value.shape)}; only known sizes can be "
                "exported"
            )
        return Port(kind=kind, name=name, shape=tuple(value.shape), dtype=value.dtype)

    def _call(self, node: fx.Node) -> None:
        if node.target is not STORE and node.target is not aten.copy_.default:
            for source in node.all_input_nodes:
                if source in self._changed:
                    node.replace_input_with(source, self._changed[source])
        if _is_seed(node):
            self._seed(node)
        elif node.target is LOAD:
            self._load(node)
        elif node.target is STORE:
            self._store(node)
        elif node.target is OF_RANK:  # the function is given the seed of its rank
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            self.graph.erase_node(node)
        elif node.target is KEEP:
            self.graph.erase_node(node)
        elif node.target is aten.copy_.default and node.args[0] in self.ports:
            self._copy_into(node)
        elif isinstance(node.target, OpOverload):
            self._refuse_effects(node, node.target)

    def _seed(self, node: fx.Node) -> None:
        seed = self._placeholder(node, "metis_seed")
        node.replace_all_uses_with(seed)
        self.graph.erase_node(node)
        self.ports[seed] = self._port(seed, "seed", "seed")

    def _placeholder(self, node: fx.Node, name: str) -> fx.Node:
        """One more argument, in place of what `node` gives."""
        first = next(n for n in self.graph.nodes if n.op != "placeholder")
        with self.graph.inserting_before(first):
            made = self.graph.placeholder(name)
        made.meta = dict(node.meta)
        return made

    def _load(self, node: fx.Node) -> None:
        _, site, part, *_ = node.args
        kept = self._placeholder(node, f"metis_kept_{len(self._kept)}")
        node.replace_all_uses_with(kept)
        self.graph.erase_node(node)
        self.ports[kept] = self._port(kept, "state", f"{site}: {part}")
        self._kept[site, part] = kept

    def _store(self, node: fx.Node) -> None:
        _, value, site, part = node.args
        assert isinstance(value, fx.Node)
        self._changed[self._kept[site, part]] = self._changed.get(value, value)
        self.graph.erase_node(node)

    def _copy_into(self, node: fx.Node) -> None:
        target, value = node.args[:2]
        assert isinstance(target, fx.Node)
        assert isinstance(value, fx.Node)
        self._changed[target] = value
        node.replace_all_uses_with(value)
        self.graph.erase_node(node)

    def _refuse_effects(self, node: fx.Node, target: Any) -> None:
        place = place_of(node, self.captured, self.stage)
        if torch.Tag.nondeterministic_seeded in target.tags and not without_dropout(node):
            raise ExportError(
                f"{target} draws random numbers, which can't be exported, in the {place}; switch it off, such as "
                "dropout by model.eval() or a probability of 0"
            )
        if target._schema.is_mutable:
            raise ExportError(f"{target} changes what it is given, which can't be exported, in the {place}")

    def _outputs(self) -> list[Port]:
        """Sets what the graph returns, and says what it is."""
        output = self.graph.output_node()
        values: list[tuple[fx.Node, Port]] = []
        saved: list[tuple[fx.Node, Port]] = []
        returned: Any = output.args[0]
        for value, was_named, desc in zip(returned, self._names, output.meta["desc"], strict=True):
            kind, *of = aot_output(desc)
            if kind == "saved":
                if isinstance(value, fx.Node) and value.op == "placeholder":
                    self.saved[was_named] = self.ports[value]
                elif value is not None:
                    saved.append((value, self._port(value, "saved", was_named)))
                    self.saved[was_named] = saved[-1][1]
            elif isinstance(value, fx.Node):
                value = self._changed.get(value, value)
                if kind == "gradient":
                    name = of[1] if isinstance(of[1], str) else self._of(*of)
                    values.append((value, self._port(value, "gradient", name)))
                elif of[1] is not None:  # an input's new value
                    source = self.sources[of[1]]
                    values.append((value, self._port(value, source.kind, source.name)))
                else:
                    values.append((value, self._port(value, "output", self._of(*of))))
            elif value is not None:
                raise ExportError(f"the model returns {value!r} from its graph; only tensors can be exported")
        for node, new in self._changed.items():
            values.append((new, self.ports[node]))
        values += saved
        output.args = (tuple(value for value, _ in values),)
        return [port for _, port in values]


def copy_module(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph of its own, with the same constants."""
    graph = fx.Graph()
    returned: Any = graph.graph_copy(gm.graph, {}, return_output_node=True)
    result, output = returned
    graph.output(result).meta = copy.copy(output.meta)
    return fx.GraphModule(gm, graph)


def _is_seed(node: fx.Node) -> bool:
    """Whether this is the draw of the graph's seed: see `GraphBuilder.seed`."""
    return node.target is aten.randint.low and node.args[:3] == (0, 2**SEED_BITS - 1, [1])
