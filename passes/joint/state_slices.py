"""What lives across steps: slices of two flat tensors, inputs of the graph, one for its forward and one for backward.

A slice is read by `metis::load` and written by `metis::store_`, each once a step and in its own half of the graph:
neither is done again where backward recomputes the forward. Slices are allotted in the order in which they are asked
for, which is that of the graph. Values between -1 and 1 are there at first, at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from metis_compile.ops.state import LOAD, STORE
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.sites import GraphInputs
from metis_compile.passes.joint.roles import is_tangent, state_placeholders


class StateSlice:
    """One slice. Emits its reading and its writing where the builder stands."""

    def __init__(
        self, builder: GraphBuilder, state: fx.Node, offset: int, shape: Sequence[int], backward: bool
    ) -> None:
        self.builder, self.state, self.offset, self.shape = builder, state, offset, list(shape)
        self.backward = backward
        self.tag = "must_be_in_backward" if backward else "must_be_in_forward"

    def read(self, name: str) -> fx.Node:
        with self.builder.marking(partitioner_tag=self.tag):
            node = self.builder.call(LOAD, (self.state, self.offset, self.shape), name=name)
        self._keep(node)
        return node

    def write(self, value: fx.Node) -> None:
        """Writes `value`, and has what backward needs of it saved, even where the rest is computed again."""
        self._keep(value)
        with self.builder.marking(partitioner_tag=self.tag):
            node = self.builder.call(STORE, (self.state, value, self.offset))
        self._forget(node)

    def _keep(self, node: fx.Node) -> None:
        self._forget(node)
        if not self.backward:
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    @staticmethod
    def _forget(node: fx.Node) -> None:
        """That the node lies in a checkpointed region."""
        for key in ("recompute", "ac_graph_id"):
            node.meta.pop(key, None)


class StateSlices:
    """Allots slices of the state tensors of one graph."""

    def __init__(self, builder: GraphBuilder, inputs: GraphInputs) -> None:
        self.builder = builder
        self.training = any(is_tangent(node) for node in builder.graph.find_nodes(op="placeholder"))
        self._states = state_placeholders(builder.graph, inputs)
        self._used = [0, 0]

    def refusal(self, shapes: Sequence[Sequence[int]], like: fx.Node, backward: bool) -> str | None:
        """Why slices of these shapes, side by side, can't be had where `like` lies, or None."""
        if not all(isinstance(size, int) for shape in shapes for size in shape):
            return f"it has the symbolic shape {tuple(shapes[0])}"
        if not self._states:
            return "the graph was compiled without gradients"
        state, device = self._states[backward], like.meta["val"].device
        if device != state.meta["val"].device:
            return f"it lies on {device}, and what is kept on {state.meta['val'].device}"
        if self._used[backward] + sum(map(math.prod, shapes)) > state.meta["val"].numel():
            return "no room to keep it"
        return None

    def allot(self, shape: Sequence[int], like: fx.Node, backward: bool) -> StateSlice:
        """A slice that no one else has, where `like` lies. Raises RuntimeError where `refusal` says why not."""
        why = self.refusal([shape], like, backward)
        if why is not None:
            raise RuntimeError(f"a slice of shape {tuple(shape)} can't be kept across steps: {why}")
        offset = self._used[backward]
        self._used[backward] += math.prod(shape)
        return StateSlice(self.builder, self._states[backward], offset, shape, backward)
