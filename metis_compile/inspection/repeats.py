"""Look at repeated blocks once: cut the blocks out of a Dynamo graph that do what their neighbours do.

    embedding, layers.0, layers.1, layers.2, ..., layers.78, layers.79, head
    ->  embedding, layers.0, layers.40, layers.79, head            layers.40 stands for layers.1 to layers.78

Blocks are alike where their calls are, one by one, on tensors of the same shapes, and where the policy decides the same
for each of their modules. The first and the last block of such a run stay too, since what lies beside them differs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from metis_compile.compat import copy_dynamo_graph
from metis_compile.passes.graph.provenance import module_name, op_name, source_line

_SHORTEST = 4  # a run of fewer blocks is looked at as a whole
Alike = Callable[[str, str], bool]  # whether the policy decides the same for two modules, by their names


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A block that was kept, and those that it stands for: "layers.40" for "layers.1" to "layers.39" and so on."""

    kept: str
    others: tuple[str, ...]  # in the order of the model, without the kept one

    def everywhere(self) -> Iterator[str]:
        """All blocks that it is about, in the order of the model."""
        own = _number(self.kept)
        yield from (name for name in self.others if _number(name) < own)
        yield self.kept
        yield from (name for name in self.others if _number(name) > own)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A Dynamo graph without the blocks that others stand for."""

    gm: fx.GraphModule
    inputs: tuple[int, ...]  # positions, among those of the whole graph, of the inputs that are left
    repeats: tuple[Repeat, ...] = ()
    order: dict[int, int] = field(default_factory=dict)  # left input that one block alone reads -> the block's place
    names: tuple[str, ...] = ()  # of the blocks, by place


@dataclass(kw_only=True)
class _Block:
    name: str
    nodes: list[fx.Node]

    def __post_init__(self) -> None:
        self.place = {node: i for i, node in enumerate(self.nodes)}


def cut_repeats(gm: fx.GraphModule, alike: Alike) -> Cut:
    """A copy of `gm` in which one block stands for those that are like it; `gm` itself stays as it is."""
    copied, placeholders = copy_dynamo_graph(gm)
    if any(not isinstance(n.meta.get("example_value"), Tensor) for n in placeholders):
        return whole(gm)  # with sizes as inputs: shapes are symbols, and a policy may ask for them
    repeats: list[Repeat] = []
    order: dict[int, int] = {}
    names: list[str] = []
    removed: list[fx.Node] = []
    for blocks in _containers(copied.graph, placeholders):
        runs = _runs(blocks, alike)
        for run in runs:
            middle = (run[0] + run[-1]) // 2
            repeats.append(_remove(blocks, run, middle, removed))
        if runs:
            for block in blocks:
                for node in _inputs_of(block):
                    order[placeholders.index(node)] = len(names)
                names.append(block.name)
    if not repeats:
        return whole(gm)
    gone = set(removed)
    (output,) = copied.graph.find_nodes(op="output")
    output.args = (tuple(value for value in output.args[0] if value not in gone),)
    for node in reversed(copied.graph.nodes):
        if node in gone:
            copied.graph.erase_node(node)
    left = []
    for i, node in enumerate(placeholders):
        if i in order and not node.users:
            copied.graph.erase_node(node)
        else:
            left.append(i)
    copied.recompile()
    return Cut(
        gm=copied,
        inputs=tuple(left),
        repeats=tuple(repeats),
        order={new: order[old] for new, old in enumerate(left) if old in order},
        names=tuple(names),
    )


def whole(gm: fx.GraphModule) -> Cut:
    """Nothing is cut."""
    return Cut(gm=gm, inputs=tuple(range(len(gm.graph.find_nodes(op="placeholder")))))


def block_name(module: str) -> Iterator[str]:
    """The blocks that a module lies in: "stages.0" and "stages.0.blocks.3" of "stages.0.blocks.3.mlp"."""
    parts = module.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            yield ".".join(parts[: i + 1])


def renamed(text: str, old: str, new: str) -> str:
    """The name of a module or parameter in block `old`, as it is in block `new`."""
    return new + text[len(old) :] if text == old or text.startswith(f"{old}.") else text


def _number(block: str) -> int:
    return int(block.rsplit(".", 1)[-1])


def _containers(graph: fx.Graph, placeholders: Sequence[fx.Node]) -> list[list[_Block]]:
    """Blocks that follow each other in the graph, for each list of blocks; of nested lists, the outermost that do."""
    calls = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, node in enumerate(calls):
        for block in block_name(module_name(node)):
            found[block.rpartition(".")[0]][block].append(i)
    containers: list[list[_Block]] = []
    taken: list[str] = []
    for container in sorted(found, key=lambda name: name.count(".")):
        places = found[container]
        if len(places) < _SHORTEST or any(container.startswith(other) for other in taken):
            continue
        blocks, last = [], None
        for name, indices in places.items():
            start = indices[0] if last is None else last + 1  # what lies between two blocks belongs to the later one
            blocks.append(_Block(name=name, nodes=calls[start : indices[-1] + 1]))
            contiguous = all(
                i in set(indices) or not module_name(calls[i]).startswith(f"{container}.")
                for i in range(start, indices[-1] + 1)
            )
            if (last is not None and indices[0] <= last) or not contiguous:
                break
            last = indices[-1]
        else:
            containers.append(blocks)
            taken.append(f"{container}.")
    return containers


def _runs(blocks: Sequence[_Block], alike: Alike) -> list[list[int]]:
    """Runs of at least `_SHORTEST` blocks each of which is like the one before it, the first two included."""
    runs: list[list[int]] = [[0]]
    for i in range(1, len(blocks)):
        if _same(blocks, i, alike) and (len(runs[-1]) > 1 or _closed(blocks, i - 1)) and _closed(blocks, i):
            runs[-1].append(i)
        else:
            runs.append([i])
    return [run for run in runs if len(run) >= _SHORTEST]


def _closed(blocks: Sequence[_Block], i: int) -> bool:
    """Whether no more than the block itself and the next one reads what a block computes; the model may return it."""
    if i + 1 == len(blocks):
        return True
    readers = blocks[i].place.keys() | blocks[i + 1].place.keys()
    return all(user in readers or user.op == "output" for node in blocks[i].nodes for user in node.users)


def _same(blocks: Sequence[_Block], i: int, alike: Alike) -> bool:
    """Whether block i does what block i - 1 does, to what block i - 1 computed and to parameters of its own."""
    before, after = blocks[i - 1], blocks[i]
    if len(before.nodes) != len(after.nodes):
        return False
    own: dict[fx.Node, fx.Node] = {}
    modules: dict[str, str] = {}
    for a, b in zip(before.nodes, after.nodes, strict=True):
        if not _same_call(a, b) or (i + 1 < len(blocks) and _is_returned(a) != _is_returned(b)):
            return False
        modules[module_name(a)] = module_name(b)
        for x, y in zip(a.all_input_nodes, b.all_input_nodes, strict=True):
            if x in before.place or y in after.place:
                if before.place.get(x) != after.place.get(y):
                    return False
            elif y in before.place:  # what the block before computed
                earlier = blocks[i - 2].place if i > 1 else {}
                if x in earlier and earlier[x] != before.place[y]:
                    return False
                if not _same_value(x, y):
                    return False
            elif x is not y and not (own.setdefault(x, y) is y and x.op == y.op == "placeholder" and _same_value(x, y)):
                return False
    for module, other in modules.items():
        if renamed(module, before.name, after.name) != other or not alike(module, other):
            return False
    read_here = all(user in before.place for x in own for user in x.users)
    return bool(own) and read_here and all(user in after.place for y in own.values() for user in y.users)


def _same_call(a: fx.Node, b: fx.Node) -> bool:
    if (a.op, a.target) != (b.op, b.target) or a.op == "get_attr":
        return False
    if _without_nodes((a.args, a.kwargs)) != _without_nodes((b.args, b.kwargs)):
        return False
    return _same_value(a, b) and op_name(a) == op_name(b) and source_line(a) == source_line(b)


def _is_returned(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _without_nodes(arguments: Any) -> str:
    return repr(fx.map_arg(arguments, lambda node: "a node"))


def _same_value(a: fx.Node, b: fx.Node) -> bool:
    return _described(a.meta.get("example_value")) == _described(b.meta.get("example_value"))


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        strided = value.layout is torch.strided
        stride = str(value.stride()) if strided else ""
        return type(value), str(value.shape), stride, value.dtype, value.device, value.requires_grad
    if isinstance(value, (tuple, list)):
        return [_described(v) for v in value]
    return value


def _inputs_of(block: _Block) -> set[fx.Node]:
    """The graph's inputs that this block alone reads."""
    read = {n for node in block.nodes for n in node.all_input_nodes if n.op == "placeholder"}
    return {n for n in read if all(user in block.place for user in n.users)}


def _remove(blocks: Sequence[_Block], run: Sequence[int], middle: int, removed: list[fx.Node]) -> Repeat:
    """Takes all blocks of a run out but its first, its middle and its last one, which then follow each other."""
    gone = [i for i in run if i not in (run[0], middle, run[-1])]
    for kept, before in ((middle, run[0]), (run[-1], middle)):
        if kept - 1 == before:
            continue
        place, new = blocks[kept - 1].place, blocks[before].nodes
        for node in blocks[kept].nodes:
            for read in node.all_input_nodes:
                if read in place:
                    node.replace_input_with(read, new[place[read]])
    removed += [node for i in gone for node in blocks[i].nodes]
    return Repeat(kept=blocks[middle].name, others=tuple(blocks[i].name for i in gone))
