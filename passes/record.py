"""What a compile leaves to look at: its graphs and sites. `with metis_compile.capture() as captured:`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from operator import getitem
from typing import Any, Literal, Protocol

import torch
from torch import fx

from metis_compile.compat import CustomPartitionerFn, partition, size_hint, without_custom_passes
from metis_compile.passes.graph.sites import GraphInputs, Site
from metis_compile.passes.graph.views import root
from metis_compile.policy import Policy


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """A tensor that the forward graph hands to the backward graph."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    is_parameter: bool  # a parameter is kept anyway: saving it costs nothing


@dataclass(kw_only=True)
class CapturedGraph:
    """One compiled graph. `joint_*` hold forward and backward together; for inference there is no backward."""

    joint_before: fx.GraphModule | None = None
    joint_after: fx.GraphModule | None = None
    forward: fx.GraphModule | None = None
    backward: fx.GraphModule | None = None
    sites: list[Site] = field(default_factory=list)
    saved: list[SavedTensor] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)  # graph input -> the parameter's name
    inputs: GraphInputs | None = None  # what is known of the graph from outside
    plain: CapturedGraph | None = None  # the same without our passes, where `capture` was asked for it

    @property
    def saved_bytes(self) -> int:
        """Bytes that forward keeps for backward, parameters not counted."""
        return sum(t.nbytes for t in self.saved if not t.is_parameter)

    def listing(self, stage: Literal["joint_before", "joint_after", "forward", "backward"] = "joint_after") -> str:
        """The graph to read, or to compare with a golden: a line `name = op(arguments)` per call.

        The parts between a quantization and what decodes it are left out.
        """
        gm = getattr(self, stage)
        if gm is None:
            raise ValueError(f"metis: there is no {stage} graph: nothing needed a gradient when this was compiled")
        return "\n".join(_line(n) for n in gm.graph.nodes if n.op == "call_function" and n.target is not getitem)


class Recorder(Protocol):
    """What is told of a graph while it is compiled; `Record` says of what."""

    def nested(self, sites: list[Site]) -> None: ...

    def before(self, graph: fx.Graph, inputs: GraphInputs) -> None: ...

    def after(self, graph: fx.Graph, sites: list[Site], parameters: dict[str, str], state: Sequence[str]) -> None: ...


class Record:
    """Fills one `CapturedGraph` while a graph is compiled."""

    def __init__(self, graph: CapturedGraph, plain: bool = False) -> None:
        self.graph, self.plain = graph, plain
        self._nested: list[Site] = []
        self._state: Sequence[str] = ()

    def nested(self, sites: list[Site]) -> None:
        """Products inside an operator's body; the same body may be visited more than once."""
        known = {(s.source, s.module, s.gemm) for s in self._nested}
        self._nested += [s for s in sites if (s.source, s.module, s.gemm) not in known]

    def before(self, graph: fx.Graph, inputs: GraphInputs) -> None:
        self.graph.joint_before, self.graph.inputs = _copy(graph), inputs

    def after(self, graph: fx.Graph, sites: list[Site], parameters: dict[str, str], state: Sequence[str]) -> None:
        """state: names of the inputs that live across steps: that backward reads one of them stores nothing."""
        self._state = state
        self.graph.joint_after = self.graph.forward = _copy(graph)
        self.graph.sites, self.graph.parameters = [*sites, *self._nested], parameters

    def parted(self, forward: fx.GraphModule, backward: fx.GraphModule, outputs: int) -> None:
        self._keep_parts(self.graph, forward, backward, outputs)

    def parted_plain(self, forward: fx.GraphModule, backward: fx.GraphModule, outputs: int) -> None:
        """The parts of the graph as it was before our passes."""
        self.graph.plain = CapturedGraph(joint_before=self.graph.joint_before, parameters=self.graph.parameters)
        self._keep_parts(self.graph.plain, forward, backward, outputs)

    def _keep_parts(
        self, graph: CapturedGraph, forward: fx.GraphModule, backward: fx.GraphModule, outputs: int
    ) -> None:
        graph.forward, graph.backward = _copy(forward.graph), _copy(backward.graph)
        graph.saved = [
            _saved(node, graph.parameters)
            for node in _outputs(forward)[outputs:]
            if _is_tensor(node) and node.name not in self._state
        ]


@dataclass(kw_only=True)
class Captured:
    """What `capture()` yields. `graphs` has one entry per graph that was compiled inside the block, in order."""

    graphs: list[CapturedGraph] = field(default_factory=list)
    plain: bool = False  # keep what the same graphs are without our passes, too

    def begin(self) -> Record:
        self.graphs.append(CapturedGraph())
        return Record(self.graphs[-1], self.plain)

    @property
    def saved_bytes(self) -> int:
        """Bytes that all forward graphs keep for backward, parameters not counted."""
        return sum(g.saved_bytes for g in self.graphs)


_ACTIVE: ContextVar[tuple[Captured, ...]] = ContextVar("metis_captures", default=())


def active_captures() -> tuple[Captured, ...]:
    """The captures that a compile should fill."""
    return _ACTIVE.get()


@contextmanager
def capture(*, plain: bool = False) -> Iterator[Captured]:
    """Records every graph that backend="metis" compiles inside the block; the caches are not read there.

    plain: also partition each graph as it was before our passes, for what the plain model saves for backward.

    A model that was compiled before the block is not compiled again in it: compile a new one, or call
    `torch.compiler.reset()` first.
    """
    captured = Captured(plain=plain)
    token = _ACTIVE.set((*_ACTIVE.get(), captured))
    try:
        yield captured
    finally:
        _ACTIVE.reset(token)


@dataclass(kw_only=True)
class Tally:
    """How many products of one graph were rewritten: a record that keeps no graph, and leaves the caches on."""

    policy: Policy
    seen: bool = False  # False where Inductor's cache had the graph, so that no pass saw it
    products: int = 0
    rewritten: int = 0

    def nested(self, sites: list[Site]) -> None:
        self.products += len(sites)

    def before(self, graph: fx.Graph, inputs: GraphInputs) -> None:
        pass

    def after(self, graph: fx.Graph, sites: list[Site], parameters: dict[str, str], state: Sequence[str]) -> None:
        self.seen = True
        self.products += len(sites)
        self.rewritten += sum(site.reason is None for site in sites)


_TALLIES: ContextVar[tuple[list[Tally], ...]] = ContextVar("metis_tallies", default=())


def count(compiled: Tally) -> None:
    """Adds a graph whose compile is done: one that Dynamo gave up and began anew is not counted."""
    for tallies in _TALLIES.get():
        tallies.append(compiled)


@contextmanager
def tally() -> Iterator[list[Tally]]:
    """Counts what is rewritten in every graph that backend="metis" compiles inside the block."""
    tallies: list[Tally] = []
    _TALLIES.set((*_TALLIES.get(), tallies))
    try:
        yield tallies
    finally:
        _TALLIES.set(tuple(each for each in _TALLIES.get() if each is not tallies))


class RecordingPartitioner(CustomPartitionerFn):
    """Inductor's partitioner (or the user's), with its result recorded."""

    def __init__(self, records: Sequence[Record], inner: Any) -> None:
        self.records, self.inner = records, inner

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        part = self.inner or partition
        outputs = kwargs["num_fwd_outputs"]
        for record in self.records:
            if record.plain and record.graph.joint_before is not None:  # partitioning changes the graph
                plain = without_custom_passes(_copy(record.graph.joint_before.graph))
                forward, backward = part(plain, joint_inputs, **kwargs)
                record.parted_plain(forward, backward, outputs)
        forward, backward = part(gm, joint_inputs, **kwargs)
        for record in self.records:
            record.parted(forward, backward, outputs)
        return forward, backward

    def uuid(self) -> None:
        return None

    def __deepcopy__(self, memo: Any) -> Any:
        return self  # Inductor copies its config to describe it; the graphs we hold can't be copied


def _line(node: Any) -> str:
    arguments = [_argument(a) for a in node.args]
    if getattr(node.target, "namespace", None) == "metis":
        arguments += [f"{name}={_argument(a)}" for name, a in node.kwargs.items()]
    target = getattr(node.target, "_overloadpacket", node.target)
    return f"{node.name} = {getattr(target, '__name__', target)}({', '.join(arguments)})"


def _argument(argument: Any) -> str:
    """A list of all parts of one quantization is that quantization."""
    if isinstance(argument, (list, tuple)):
        sources = {a.args[0] for a in argument if isinstance(a, fx.Node) and a.target is getitem}
        if len(sources) == 1 and len(argument) > 1:
            return str(sources.pop())
    return str(argument)


def _copy(graph: fx.Graph) -> fx.GraphModule:
    """The graph as it is now, called with its inputs one after the other and returning a tuple."""
    copied = fx.Graph()
    returned: Any = copied.graph_copy(graph, {}, return_output_node=True)
    result, output = returned
    copied.output(result).meta = copy.copy(output.meta)
    return fx.GraphModule(graph.owning_module or {}, copied)


def _outputs(gm: fx.GraphModule) -> list[Any]:
    (output,) = gm.graph.find_nodes(op="output")
    outputs: Any = output.args[0]
    return list(outputs)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def _root(node: fx.Node) -> fx.Node:
    """A saved view of a parameter is the parameter."""
    return root(node, through_casts=False)


def _saved(node: fx.Node, parameters: dict[str, str]) -> SavedTensor:
    value = node.meta["val"]
    shape = tuple(size_hint(s) for s in value.shape)
    numel = 1
    for s in shape:
        numel *= s
    return SavedTensor(
        name=node.name,
        shape=shape,
        dtype=value.dtype,
        nbytes=numel * value.dtype.itemsize,
        is_parameter=_root(node).name in parameters,
    )
