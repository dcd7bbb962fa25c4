"""Add nodes to a graph with the metadata that the rest of the compiler relies on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from metis_compile.compat import detect_fake_mode
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.noise import SEED_BITS
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.ops.rank import OF_RANK
from metis_compile.ops.state import KEEP
from metis_compile.passes.graph.fake_values import FakeValues
from metis_compile.ranks import draws_by_rank

aten = torch.ops.aten
# what a new node takes over from the node it stands for; `val` is its own
CARRIED = (
    "stack_trace",
    "nn_module_stack",
    "fwd_nn_module_stack",
    "source_fn_stack",
    "fwd_source_fn_stack",
    "original_aten",
    "seq_nr",
    "partitioner_tag",
    "recompute",
    "ac_graph_id",
    "custom",
    "from_node",
)


class GraphBuilder:
    """Inserts calls into `graph`, evaluating each under the graph's fake tensor mode."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        values = [n.meta["val"] for n in graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        self.fake_mode = detect_fake_mode(values)
        self._values = FakeValues(self.fake_mode)
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._symbols = {
            n.meta["val"].node.expr: n
            for n in graph.nodes
            if n.op == "placeholder" and isinstance(n.meta.get("val"), torch.SymInt)
        }
        self._like: fx.Node | None = None
        self._marks: dict[str, Any] = {}
        self._seeds: dict[torch.device, fx.Node] = {}

    @contextmanager
    def at(self, before: fx.Node, *, like: fx.Node) -> Iterator[None]:
        """Within: calls are inserted before `before` and carry the metadata of `like`."""
        previous, self._like = self._like, like
        try:
            with self.graph.inserting_before(before):
                yield
        finally:
            self._like = previous

    @contextmanager
    def marking(self, **meta: Any) -> Iterator[None]:
        """Within: calls carry this metadata too."""
        previous, self._marks = self._marks, {**self._marks, **meta}
        try:
            yield
        finally:
            self._marks = previous

    def precedes(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether `a` came before `b` in the graph as it was captured."""
        return a in self._order and b in self._order and self._order[a] < self._order[b]

    def behind(self, node: fx.Node) -> fx.Node:
        """What comes after `node`, and after all inputs if it is one: the first place for what reads it."""
        following = node.next
        while node.op == "placeholder" and following.op == "placeholder":
            following = following.next
        return following

    def take_place(self, old: fx.Node, *new: fx.Node) -> None:
        """Has `precedes` say of the new nodes what it says of the old one, which they replace."""
        self._order.update({node: self._order[old] for node in new if old in self._order})

    def call(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        name: str | None = None,
    ) -> fx.Node:
        """One `call_function` node with its `val`."""
        kwargs = dict(kwargs or {})
        fake_args, fake_kwargs = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        if self.fake_mode is None:
            raise RuntimeError("metis: the captured graph has no fake tensors, so new nodes can't be typed")
        value = self._values(target, fake_args, fake_kwargs)
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        if self._like is not None:
            node.meta.update({k: self._like.meta[k] for k in CARRIED if k in self._like.meta})
            if node.meta.get("recompute") == CheckpointPolicy.MUST_SAVE:  # said of the product's output alone
                del node.meta["recompute"]
        node.meta.update(self._marks)
        node.meta["val"] = value
        return node

    def cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        """`node` in `dtype`; `node` itself where it has it."""
        if node.meta["val"].dtype == dtype:
            return node
        return self.call(torch.ops.prims.convert_element_type.default, (node, dtype), name=f"{node.name}_cast")

    def fake_quantize(self, node: fx.Node, spec: QuantSpec, axis: int) -> fx.Node:
        """`node` quantized to nearest and back, float32."""
        quantized = self.call(QUANTIZE, (node, str(spec), axis), name=f"{node.name}_quantized")
        parts = [self.call(operator.getitem, (quantized, i)) for i in range(len(quantized.meta["val"]))]
        return self.call(DEQUANTIZE, (parts, str(spec), axis, self.size(node, axis)), name=f"{node.name}_dequantized")

    def size(self, node: fx.Node, axis: int) -> int | fx.Node:
        """The size of `node` along `axis`: an int, or a node that holds the symbolic size."""
        size = node.meta["val"].shape[axis]
        if isinstance(size, int):
            return size
        known = self._symbols.get(size.node.expr)
        if known is not None:
            return known
        source, axis = self._first_of_size.get(size.node.expr, (node, axis))
        return self.call(aten.sym_size.int, (source, axis), name=f"{source.name}_size_{axis}")

    @cached_property
    def _first_of_size(self) -> dict[Any, tuple[fx.Node, int]]:
        """Each symbolic size -> the first tensor that has it, and where.

        Inductor folds constants of a size to the first node that computes it: in forward that must not be one that
        comes from a tangent.
        """
        found: dict[Any, tuple[fx.Node, int]] = {}
        for node in self.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and "tangents" not in str(node.target):
                for axis, size in enumerate(value.shape):
                    if isinstance(size, torch.SymInt):
                        found.setdefault(size.node.expr, (node, axis))
        return found

    def product(self, a: int | fx.Node, b: int | fx.Node) -> int | fx.Node:
        """a times b, sizes."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        return self.call(operator.mul, (a, b))

    def shared_seed(self, device: torch.device) -> fx.Node:
        """The seed, drawn in forward and saved: for what must be the same in forward and backward.

        Where no output of forward needs it, the partitioner would draw it in each of the two by itself.
        """
        seed = self.seed(device)
        if seed.meta.get("recompute") != CheckpointPolicy.MUST_SAVE:
            seed.meta["recompute"] = CheckpointPolicy.MUST_SAVE
            previous, self._like = self._like, None
            with self.graph.inserting_after(seed):
                self.call(KEEP, (seed,))
            self._like = previous
        return seed

    def seed(self, device: torch.device) -> fx.Node:
        """The graph's seed on `device`, one int64 drawn from torch's generator each time the graph runs.

        In a distributed run it is that of the data-parallel rank: the generators of all ranks draw the same.
        """
        if device not in self._seeds:
            first = next(n for n in self.graph.nodes if n.op not in ("placeholder", "get_attr"))
            previous, self._like = self._like, None
            with self.graph.inserting_before(first):
                kwargs = {"dtype": torch.int64, "device": device, "pin_memory": False}
                args = (0, 2**SEED_BITS - 1, [1])
                self._seeds[device] = self.call(aten.randint.low, args, kwargs, name="metis_seed")
                if draws_by_rank():
                    self._seeds[device] = self.call(OF_RANK, (self._seeds[device],), name="metis_rank_seed")
            self._like = previous
        return self._seeds[device]
