"""What lives across steps, tensors that are known by the name of their site and of their part.

A site is the weight that a product multiplies, by the parameter's name in the model, or, where there is none, the
module and what it called: `layers.0.up.weight`, `layers.0.attention:matmul`. A part is the operand that is split,
`activation`, and `activation#1` for the second such tensor of the site in this graph; `activation.amax` is the amax
that is held of it. Neither says anything of the graph, so that every graph in which the site stands reads and writes
the same.

A tensor is read by `metis::load` and written by `metis::store_`, each once a step and in its own half of the graph:
neither is done again where backward recomputes the forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from metis_compile.ops.state import LOAD, STORE
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.sites import GraphInputs, KeptName, Site
from metis_compile.passes.joint.roles import is_tangent, state_placeholders


class KeptTensor:
    """One tensor that is kept. Emits its reading and its writing where the builder stands."""

    def __init__(
        self,
        builder: GraphBuilder,
        state: fx.Node,
        name: KeptName,
        shape: Sequence[int],
        device: torch.device,
        backward: bool,
    ) -> None:
        self.builder, self.state, self.name, self.shape = builder, state, name, list(shape)
        self.device, self.backward = device, backward
        self.tag = "must_be_in_backward" if backward else "must_be_in_forward"

    def read(self, name: str) -> fx.Node:
        with self.builder.marking(partitioner_tag=self.tag):
            node = self.builder.call(LOAD, (self.state, *self.name, self.shape, self.device), name=name)
        self.keep(node)
        return node

    def write(self, value: fx.Node) -> None:
        """Writes `value`, and has what backward needs of it saved, even where the rest is computed again."""
        self.keep(value)
        with self.builder.marking(partitioner_tag=self.tag):
            node = self.builder.call(STORE, (self.state, value, *self.name))
        self.forget(node)

    def keep(self, node: fx.Node) -> None:
        """Has what this half makes saved for the other, even where the rest is computed again."""
        self.forget(node)
        if not self.backward:
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    @staticmethod
    def forget(node: fx.Node) -> None:
        """That the node lies in a checkpointed region."""
        for key in ("recompute", "ac_graph_id"):
            node.meta.pop(key, None)


class KeptTensors:
    """What one graph keeps across steps."""

    def __init__(self, builder: GraphBuilder, inputs: GraphInputs) -> None:
        self.builder = builder
        self.training = any(is_tangent(node) for node in builder.graph.find_nodes(op="placeholder"))
        self._states = state_placeholders(builder.graph, inputs)
        self._named: Counter[KeptName] = Counter()

    def name(self, site: Site, role: str) -> KeptName:
        """A name for one more tensor of a site, the same in all graphs that split the same tensors of it in order."""
        name = (site.weights[0] if site.weights else f"{site.module}:{site.op}"), role
        number = self._named[name]
        self._named[name] += 1
        return name if number == 0 else (name[0], f"{role}#{number}")

    def refusal(self, shape: Sequence[int]) -> str | None:
        """Why a tensor of this shape can't be kept, or None."""
        if not all(isinstance(size, int) for size in shape):
            return f"it has the symbolic shape {tuple(shape)}"
        return None if self._states else "the graph was compiled without gradients"

    def at(self, name: KeptName, shape: Sequence[int], device: torch.device, backward: bool) -> KeptTensor:
        """The tensor of this name and shape. Raises RuntimeError where `refusal` says why not."""
        why = self.refusal(shape)
        if why is not None:
            raise RuntimeError(f"a tensor of shape {tuple(shape)} can't be kept across steps: {why}")
        return KeptTensor(self.builder, self._states[backward], name, shape, device, backward)
