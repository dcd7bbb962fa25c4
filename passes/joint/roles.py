"""What every value of a joint graph depends on: tangents, parameters, data; and so the role of an operand."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from metis_compile.compat import aot_position
from metis_compile.passes.graph.sites import GraphInputs, Role
from metis_compile.passes.graph.views import shape_of

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten._unsafe_index.Tensor)


class Dependencies:
    """For every node: does its value depend on a tangent, on a parameter, on data?"""

    def __init__(self, graph: fx.Graph, inputs: GraphInputs) -> None:
        self.tangent: set[fx.Node] = set()
        self.parameter: set[fx.Node] = set()
        self.data: set[fx.Node] = set()
        self.arguments: set[fx.Node] = set()  # of the data: matrices that the caller passes and trains
        self.names: dict[fx.Node, str] = {}
        for position, node in enumerate(n for n in graph.nodes if n.op == "placeholder"):
            if is_tangent(node):
                self.tangent.add(node)
            elif (name := _parameter_name(node, position, inputs)) is not None:
                self.parameter.add(node)
                self.names[node] = name
            elif input_position(node, position) not in inputs.buffers:
                self.data.add(node)
                if input_position(node, position) in inputs.arguments:
                    self.arguments.add(node)
        for node in graph.nodes:
            sources = _sources_of_values(node)
            for kind in (self.tangent, self.parameter, self.data):
                if any(source in kind for source in sources):
                    kind.add(node)

    def role(self, node: fx.Node) -> Role:
        if node in self.tangent:
            return "gradient"
        if node in self.parameter and node not in self.data:
            return "weight"
        return "activation"

    def parameters(self, node: fx.Node) -> tuple[str, ...]:
        """Names of the parameters that a weight operand is made of."""
        found, stack, seen = [], [node], {node}
        while stack:
            current = stack.pop()
            if current in self.names:
                found.append(self.names[current])
            for source in current.all_input_nodes:
                if source not in seen and source in self.parameter:
                    seen.add(source)
                    stack.append(source)
        return tuple(sorted(found))


def _sources_of_values(node: fx.Node) -> list[fx.Node]:
    """What the values of `node` come from: for whole matrices picked out of a stack, the stack and not the index.

    The weights of the experts that a router chose are weights. Rows of a table (an embedding) are no matrices: they
    are activations.
    """
    if node.op != "call_function" or not node.all_input_nodes:
        return node.all_input_nodes
    stack: Any = node.args[0]
    leading = len(shape_of(stack)) - 2 if _is_tensor(stack) else 0
    if node.target in INDEXING:
        indices: Any = node.args[1]
        picks_matrices = not any(indices[leading:])
    elif node.target in (aten.select.int, aten.index_select.default):
        dim: Any = node.args[1]
        picks_matrices = dim % (leading + 2) < leading
    else:
        return node.all_input_nodes
    return [stack] if picks_matrices and leading > 0 else node.all_input_nodes


def _is_tensor(node: object) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def parameter_placeholders(graph: fx.Graph, inputs: GraphInputs) -> dict[str, str]:
    """Names of the graph's inputs that are parameters, and what the model calls them."""
    placeholders = (n for n in graph.nodes if n.op == "placeholder")
    names = ((n.name, _parameter_name(n, i, inputs)) for i, n in enumerate(placeholders) if not is_tangent(n))
    return {node: name for node, name in names if name is not None}


def state_placeholders(graph: fx.Graph, inputs: GraphInputs) -> list[fx.Node]:
    """The graph's inputs that live across steps: of its forward part and of its backward part, or none."""
    placeholders = graph.find_nodes(op="placeholder")
    positions = {input_position(n, i): n for i, n in enumerate(placeholders) if not is_tangent(n)}
    return [positions[i] for i in inputs.state or ()]


def is_tangent(node: fx.Node) -> bool:
    return "tangents" in str(node.target)


def input_position(node: fx.Node, position: int) -> int | None:
    """Which input of Dynamo's graph a placeholder is, or lies inside of (a tensor subclass has several)."""
    desc = node.meta.get("desc")
    return position if desc is None else aot_position(desc)


def _parameter_name(node: fx.Node, position: int, inputs: GraphInputs) -> str | None:
    desc: Any = node.meta.get("desc")
    if type(desc).__name__ == "ParamAOTInput":  # Dynamo left the module's parameters as attributes
        return desc.target
    found = input_position(node, position)
    return None if found is None else inputs.parameters.get(found)
