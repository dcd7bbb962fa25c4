"""Names of what a Dynamo graph reads and calls: parameters by their sources, products by their modules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from metis_compile.compat import (
    dynamo_scope,
    dynamo_source,
    is_buffer_input,
    is_parameter_input,
    source_chain,
)
from metis_compile.naming.outermost import outermost
from metis_compile.naming.tree import ModuleTree, tree_of
from metis_compile.passes.graph.provenance import clean_path
from metis_compile.passes.graph.sites import GraphInputs

_NAMED = "metis_name"  # in the metadata of an input of Dynamo's graph: what the model calls it


@dataclass(kw_only=True)
class GraphNames:
    """What a graph's parameters and modules are called in the user's outermost model.

    base: the module that was compiled, or that a compiled function calls; None where there is none, or several.
    stacks: of each node that has one, Dynamo's record of the modules around it.
    """

    inputs: GraphInputs
    base: nn.Module | None = None
    tree: ModuleTree | None = None  # of the outermost model around base
    roots: list[nn.Module] = field(default_factory=list)  # the outermost models of all that the graph reads
    modules: dict[str, str] = field(default_factory=dict)  # Dynamo's key of a module -> its name
    stacks: list[tuple[fx.Node, dict[str, Any]]] = field(default_factory=list)
    has_plain_tensors: bool = False  # in the places of parameters, as FSDP1 has them
    matrices: int = 0  # how many of the parameters are matrices, tables of embeddings not counted

    @property
    def base_name(self) -> str:
        return self.tree.modules.get(id(self.base), "") if self.tree is not None else ""

    @property
    def is_part(self) -> bool:
        """Whether what was compiled is a part of the model only."""
        return self.tree is not None and self.base is not None and self.base_name != ""

    def called(self) -> list[str]:
        """Names of the modules that the graph has nodes of, and of the one that was compiled."""
        innermost = [list(stack)[-1] for _, stack in self.stacks if stack]
        return list(dict.fromkeys([self.base_name, *(self.modules[key] for key in innermost)]))

    def moved(self, name: str, to: str) -> str:
        """What a module or parameter under the compiled module is called under the module `to` of the same class."""
        return moved(name, self.base_name, to)

    def write(self, to: str | None = None) -> GraphInputs:
        """Writes names into the metadata that AOTAutograd carries along, and returns the graph's inputs.

        to: as if the module of this name had been compiled, which has the same class.
        """
        to = self.base_name if to is None else to
        for node, stack in self.stacks:
            named = {
                key: (f"L['self'].{self.moved(self.modules[key], to)}", *more) for key, (_, *more) in stack.items()
            }
            if not named and to:
                named = {"": (f"L['self'].{to}", type(self.base))}
            if named:
                node.meta["nn_module_stack"] = named
        parameters = {position: self.moved(name, to) for position, name in self.inputs.parameters.items()}
        return replace(self.inputs, parameters=parameters)


def names_of(gm: fx.GraphModule) -> GraphNames:
    """Names for a graph that Dynamo is handing over. Outside of Dynamo: what the sources and modules' paths say."""
    scope = dynamo_scope()
    objects = _Objects(scope[0] if scope is not None else None)
    placeholders = gm.graph.find_nodes(op="placeholder")
    owners = [objects.owners(node) for node in placeholders]
    first = scope[1] if scope is not None else None
    outer = {id(found[0][1]): found[0][1] for found in owners if found}
    stacks = _stacks(gm)
    keys = {key: stack[key][0] for _, stack in stacks for key in stack}
    if not outer:  # torch.func.functional_call: its modules own none of the inputs
        outer = {id(module): module for path in keys.values() if (module := objects.root(path)) is not None}
    if isinstance(first, nn.Module) and not isinstance(first, fx.GraphModule):
        outer = {id(first): first}
    base = next(iter(outer.values())) if len(outer) == 1 else None
    trees = [tree_of(outermost(module)) for module in outer.values()]
    names = {key: name for tree in reversed(trees) for key, name in tree.modules.items()}
    tables = {key: name for tree in reversed(trees) for key, name in tree.parameters.items()}
    parameters, buffers, arguments = {}, set(), set()
    for position, (node, found) in enumerate(zip(placeholders, owners, strict=True)):
        kind = _kind(node, found)
        if kind == "parameter":
            own = objects.value(dynamo_source(node))
            name = tables.get(id(own)) or _name(node, found, names)
            parameters[position] = node.meta[_NAMED] = name
        elif kind == "buffer":
            buffers.add(position)
            node.meta[_NAMED] = _name(node, found, names)
        elif kind == "argument":
            arguments.add(position)
    depths: dict[str, int] = {}
    for tree in trees:
        for name, count in tree.depths.items():
            depths[name] = max(count, depths.get(name, 0))
    inputs = GraphInputs(
        parameters=parameters,
        buffers=frozenset(buffers),
        arguments=frozenset(arguments),
        depths=depths,
        heads=frozenset().union(*(tree.heads for tree in trees)),
        embeddings=frozenset().union(*(tree.embeddings for tree in trees)),
        vocabulary=max((tree.vocabulary for tree in trees if tree.vocabulary), default=None),
    )
    modules = {key: names.get(_identity(key), clean_path(path)) for key, path in keys.items()}
    return GraphNames(
        inputs=inputs,
        base=base,
        tree=trees[0] if base is not None else None,
        roots=[tree.root for tree in trees],
        modules=modules,
        stacks=stacks,
        has_plain_tensors=any(not is_parameter_input(placeholders[position]) for position in parameters),
        matrices=sum(
            placeholders[position].meta["example_value"].dim() > 1 and name not in inputs.embeddings
            for position, name in parameters.items()
        ),
    )


def moved(name: str, base: str, to: str) -> str:
    """A name in the module `base`, as it is in the module `to`; itself where it is elsewhere."""
    inside = name == base or name.startswith(f"{base}.")
    return (to + name[len(base) :]).lstrip(".") if inside else name


def input_name(node: fx.Node) -> str:
    """What the model calls an input of Dynamo's graph that is a parameter or a buffer."""
    return node.meta.get(_NAMED) or clean_path(dynamo_source(node)) or node.name


class _Objects:
    """The objects that Dynamo's sources stand for, each looked up once."""

    def __init__(self, scope: dict[str, Any] | None) -> None:
        self.scope, self.known = scope, {}  # type: ignore[var-annotated]

    def value(self, source: str) -> Any:
        if self.scope is None:
            return None
        if source not in self.known:
            try:
                self.known[source] = eval(source, {}, dict(self.scope))
            except Exception:  # a source that is more than attributes and items: what it stands for stays unknown
                self.known[source] = None
        return self.known[source]

    def root(self, path: str) -> nn.Module | None:
        """The module that the path of a module begins with."""
        found = re.search(r"[LG]\['[^']+'\]", path)
        value = self.value(found[0]) if found is not None else None
        return value if isinstance(value, nn.Module) else None

    def owners(self, node: fx.Node) -> list[tuple[str, nn.Module]]:
        """The modules on the way to a graph input, outermost first, with their sources."""
        chain = [] if self.scope is None else source_chain(node)[:-1]
        found = [(source, self.value(source)) for source in chain]
        return [(source, value) for source, value in found if isinstance(value, nn.Module)]


def _kind(node: fx.Node, owners: list[tuple[str, nn.Module]]) -> str | None:
    """`parameter`, `buffer`, `argument` (a matrix of parameters that the caller passes), or None for data."""
    value = node.meta.get("example_value")
    if is_parameter_input(node):
        return "parameter"
    if is_buffer_input(node):
        return "buffer"
    if not isinstance(value, torch.Tensor):
        return None
    if owners:  # an attribute of a module: FSDP1 puts plain tensors in the places of its parameters
        source, module = owners[-1]
        attribute = clean_path("L['self']" + dynamo_source(node)[len(source) :])
        if attribute in module._buffers:
            return "buffer"
        if attribute in module._parameters or (value.requires_grad and "." not in attribute):
            return "parameter"
    return "argument" if value.requires_grad and value.is_leaf and value.dim() == 2 else None


def _name(node: fx.Node, owners: list[tuple[str, nn.Module]], names: dict[int, str]) -> str:
    if owners and id(owners[-1][1]) in names:
        source, module = owners[-1]
        attribute = clean_path("L['self']" + dynamo_source(node)[len(source) :])
        return f"{names[id(module)]}.{attribute}".strip(".")
    return clean_path(dynamo_source(node)) or node.name


def _stacks(gm: fx.GraphModule) -> list[tuple[fx.Node, dict[str, Any]]]:
    graphs = [module.graph for module in gm.modules() if isinstance(module, fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.nodes if node.op.startswith("call_")]
    return [(node, dict(node.meta.get("nn_module_stack") or {})) for node in nodes]


def _identity(key: str) -> int:
    """The id of a module, by which Dynamo's records of modules go; a number behind an @ counts its calls."""
    digits = str(key).partition("@")[0]
    return int(digits) if digits.isdigit() else -1
