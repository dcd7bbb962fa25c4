"""Graphs to MLIR through torch-mlir, with calls of private functions in them.

torch-mlir's pipelines inline every call that they see, and refuse those that are left. So they see none: each function
is lowered by itself, and in the one that calls it a call is a hole: what it is given is returned, and what it
returns is an argument. Afterwards the holes are filled with calls, and all functions put into one module. In linalg
reinterpreting bits, for which torch-mlir has no lowering, is a hole too, filled with `arith.bitcast`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import fx

from metis_compile.mlir.errors import ExportError
from metis_compile.mlir.functions import function_of
from metis_compile.mlir.simplify import simplify
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.lowering.decompose_bases import decompose_bases
from metis_compile.passes.lowering.decompose_bfloat16 import write_casts_by_bits
from metis_compile.passes.lowering.decompose_hadamard import write_transforms
from metis_compile.passes.lowering.decompose_held_amaxes import decompose_held_amaxes
from metis_compile.passes.lowering.decompose_residual import write_residuals

aten = torch.ops.aten
IMPORT_PIPELINE = "torchdynamo-export-to-torch-backend-pipeline{}"
DIALECTS = {
    "linalg": "torch-backend-to-linalg-on-tensors-backend-pipeline",
    "stablehlo": "torch-backend-to-stablehlo-backend-pipeline",
    "torch": None,
}
BITCAST = "arith.bitcast"
# of what MLIR itself has; tm_tensor, which torch-mlir puts between, is not among them
LINALG = {"arith", "builtin", "cf", "complex", "func", "linalg", "math", "scf", "tensor"}
INSTALL = "pip install 'metis-compile[mlir]'"
TESTED = ("2.13.0", "20261001")  # torch and torch-mlir, as in constraints.txt
PROBED = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Hole:
    """A call that the pipelines do not see. The graph returns `operands` values for it and takes `results`."""

    callee: str
    operands: int
    results: int


@dataclass(kw_only=True)
class Piece:
    """One function to be lowered: a graph of tensors without calls, and its holes in the order of the graph."""

    name: str
    graph: fx.Graph
    holes: list[Hole] = field(default_factory=list)


def lower(name: str, gm: fx.GraphModule, dialect: str, place: Callable[[fx.Node], str]) -> tuple[str, list[str]]:
    """A graph as a module with a function of this name, as text, and the names of its private functions.

    gm: of tensors alone; it is used up. place: where in the model a node comes from. Raises ExportError that names
    the first op that can't be lowered and its place, or says that torch-mlir is missing or does not fit torch.
    """
    mlir = load_torch_mlir()
    decompose_bases(gm.graph)
    decompose_held_amaxes(gm.graph)
    write_transforms(gm.graph)
    write_residuals(gm.graph)
    write_casts_by_bits(gm.graph)
    simplify(gm.graph)
    pieces = _pieces(name, gm.graph, dialect)
    context = mlir.ir.Context()
    mlir.torch.register_dialect(context)
    with context, mlir.ir.Location.unknown():
        _check_fit(mlir, context, gm.graph, dialect)
        module = mlir.ir.Module.create()
        for piece in pieces:
            private = piece is not pieces[0]
            lowered = _lower(mlir, context, piece.graph, piece.name, dialect)
            if isinstance(lowered, str):
                raise ExportError(_blame(mlir, context, piece, dialect, lowered, None if private else place))
            _fill_holes(mlir, lowered, piece, private, module)
        if dialect == "linalg":
            mlir.passmanager.PassManager.parse("builtin.module(func.func(convert-elementwise-to-linalg))").run(
                module.operation
            )
        module.operation.verify()
        return str(module), [piece.name for piece in pieces[1:]]


def load_torch_mlir() -> Any:
    """torch-mlir's modules. Raises ExportError where it is missing, or does not fit the torch that is there."""
    try:
        importlib.metadata.version("torch-mlir")
    except importlib.metadata.PackageNotFoundError:
        raise ExportError(f"torch-mlir is not installed; it comes with {INSTALL}") from None
    try:
        from torch_mlir import ir, passmanager
        from torch_mlir.dialects import func
        from torch_mlir.dialects import torch as torch_dialect
        from torch_mlir.extras.fx_importer import FxImporter
    except Exception as error:
        raise ExportError(_misfit(f"{type(error).__name__}: {error}")) from error
    return _TorchMlir(ir=ir, passmanager=passmanager, func=func, torch=torch_dialect, importer=FxImporter)


def _misfit(why: str) -> str:
    version, text = importlib.metadata.version("torch-mlir"), " ".join(why.split())
    return (
        f"torch-mlir {version} does not fit torch {torch.__version__} ({text}); "
        f"what is tested is torch-mlir {TESTED[1]} with torch {TESTED[0]}: {INSTALL}"
    )


def _check_fit(mlir: Any, context: Any, graph: fx.Graph, dialect: str) -> None:
    """Raises ExportError where not even an op that every version has can be lowered: the model's are not to blame."""
    there = (n.meta.get("val") for n in graph.nodes)
    value = next((v for v in there if isinstance(v, torch.Tensor) and v.dtype in PROBED), None)
    if value is None:
        return
    probe = fx.Graph()
    x = probe.placeholder("x")
    y = probe.call_function(aten.neg.default, (x,))
    x.meta, y.meta = {"val": value}, {"val": value}
    probe.output((y,))
    said = _lower(mlir, context, probe, "probe", dialect)
    if isinstance(said, str):
        raise ExportError(_misfit(f"it can't lower {aten.neg.default} to {dialect}: {said}"))


@dataclass(frozen=True, kw_only=True)
class _TorchMlir:
    ir: Any
    passmanager: Any
    func: Any
    torch: Any
    importer: Any


def _pieces(name: str, graph: fx.Graph, dialect: str) -> list[Piece]:
    """The main function, and each function that it calls, once."""
    builder = GraphBuilder(graph)
    found: dict[str, Piece] = {}
    main = Piece(name=name, graph=graph)
    for node in list(main.graph.nodes):
        function = function_of(node, builder)
        if function is None:
            continue
        if function.name not in found:
            found[function.name] = Piece(name=function.name, graph=function.trace(builder).graph)
        results = [value.meta["val"] for value in _returned(found[function.name].graph)]
        _cut(
            main, node, Hole(callee=function.name, operands=len(function.inputs), results=len(results)), function.inputs
        )
    pieces = [main, *found.values()]
    for piece in pieces:
        piece.graph.eliminate_dead_code()
        if dialect == "linalg":
            for node in list(piece.graph.nodes):
                if node.target is aten.view.dtype and _same_size(node):
                    _cut(piece, node, Hole(callee=BITCAST, operands=1, results=1), node.args[:1])
        for node in piece.graph.nodes:
            node.meta.pop("tensor_meta", None)  # torch-mlir would believe it rather than `val`
    return pieces


def _returned(graph: fx.Graph) -> Sequence[fx.Node]:
    returned: Any = graph.output_node().args[0]
    return list(returned)


def _same_size(node: fx.Node) -> bool:
    source: Any = node.args[0]
    return source.meta["val"].dtype.itemsize == node.meta["val"].dtype.itemsize


def _cut(piece: Piece, node: fx.Node, hole: Hole, operands: Sequence[Any]) -> None:
    """Makes a hole of a call: its operands are returned, its results are arguments, behind those that are there."""
    graph, value = piece.graph, node.meta["val"]
    values = value if isinstance(value, (tuple, list)) else [value]
    first = next(n for n in graph.nodes if n.op != "placeholder")
    arguments = []
    for i in range(hole.results):
        with graph.inserting_before(first):
            arguments.append(graph.placeholder(f"{node.name}_{i}"))
        arguments[i].meta = {"val": values[i]}
    output = graph.output_node()
    output.args = ((*_returned(graph), *operands),)
    if isinstance(value, torch.Tensor):
        node.replace_all_uses_with(arguments[0])
    else:
        for user in list(node.users):
            user.replace_all_uses_with(arguments[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    graph.erase_node(node)
    piece.holes.append(hole)


def _lower(mlir: _TorchMlir, context: Any, graph: fx.Graph, name: str, dialect: str) -> Any:
    """The function `name` in a module of its own, or the text of what torch-mlir says against it."""
    said: list[str] = []

    def listen(diagnostic: Any) -> bool:
        said.append(" ".join(str(diagnostic).split()))
        return True

    handler = context.attach_diagnostic_handler(listen)
    try:
        importer = mlir.importer(context=context)
        importer.import_stateless_graph(graph, func_name=name)
        module = importer.module
        for pipeline in (IMPORT_PIPELINE, DIALECTS[dialect]):
            if pipeline is not None:
                mlir.passmanager.PassManager.parse(f"builtin.module({pipeline})").run(module.operation)
    except Exception as error:
        text = next(iter(said), None) or next(
            (line for line in str(error).splitlines() if "error:" in line), str(error)
        )
        return " ".join(text.split())[:300]
    finally:
        handler.detach()
    if dialect == "linalg":
        strange = next((op for op in _walk(module.operation) if op.name.partition(".")[0] not in LINALG), None)
        if strange is not None:
            return f"{strange.name} is left"
    return module


def _walk(operation: Any) -> Iterator[Any]:
    """An operation and all that are nested in it."""
    yield operation
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _walk(inner.operation)


def _blame(
    mlir: _TorchMlir, context: Any, piece: Piece, dialect: str, said: str, place: Callable[[fx.Node], str] | None
) -> str:
    """Names the first op of a piece that can't be lowered even when it is alone."""
    for node in piece.graph.nodes:
        if node.op == "call_function" and node.target is not getitem:
            why = _lower(mlir, context, _alone(node), "alone", dialect)
            if isinstance(why, str):
                where = f"@{piece.name}" if place is None else place(node)
                return f"torch-mlir can't lower {node.target} to {dialect}, in the {where}: {why}"
    return f"torch-mlir can't lower @{piece.name} to {dialect}: {said}"


def _alone(node: fx.Node) -> fx.Graph:
    """A graph of one call."""
    graph = fx.Graph(owning_module=node.graph.owning_module)
    inputs: dict[fx.Node, fx.Node] = {}

    def argument(source: fx.Node) -> fx.Node:
        if source not in inputs:
            inputs[source] = graph.placeholder(source.name)
            inputs[source].meta = {"val": source.meta["val"]}
        return inputs[source]

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), argument)
    call = graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    call.meta = {"val": node.meta["val"]}
    if isinstance(node.meta["val"], torch.Tensor):
        graph.output((call,))
        return graph
    results = []
    for i, value in enumerate(node.meta["val"]):
        if isinstance(value, torch.Tensor):
            results.append(graph.call_function(getitem, (call, i)))
            results[-1].meta = {"val": value}
    graph.output(tuple(results))
    return graph


def _fill_holes(mlir: _TorchMlir, source: Any, piece: Piece, private: bool, module: Any) -> None:
    """Moves a lowered function to `module`, with calls for its holes."""
    ir, func = mlir.ir, mlir.func
    (old,) = source.body.operations
    block = old.regions[0].blocks[0]
    ending = block.operations[len(block.operations) - 1]
    kinds, returned = list(old.type.inputs), list(old.type.results)
    taken = len(kinds) - sum(hole.results for hole in piece.holes)
    given = len(returned) - sum(hole.operands for hole in piece.holes)
    new = func.FuncOp(
        piece.name,
        ir.FunctionType.get(kinds[:taken], returned[:given]),
        visibility="private" if private else None,
        ip=ir.InsertionPoint(module.body),
    )
    entry = new.add_entry_block()
    for argument, replacement in zip(list(block.arguments)[:taken], entry.arguments, strict=True):
        argument.replace_all_uses_with(replacement)
    argument_at, operand_at = taken, given
    for hole in piece.holes:
        operands = [ending.operands[operand_at + i] for i in range(hole.operands)]
        results = [block.arguments[argument_at + i] for i in range(hole.results)]
        attributes = {} if hole.callee == BITCAST else {"callee": ir.FlatSymbolRefAttr.get(hole.callee)}
        call = ir.Operation.create(
            BITCAST if hole.callee == BITCAST else "func.call",
            results=[result.type for result in results],
            operands=operands,
            attributes=attributes,
            ip=ir.InsertionPoint(ending),
        )
        for result, replacement in zip(results, call.results, strict=True):
            result.replace_all_uses_with(replacement)
        argument_at, operand_at = argument_at + hole.results, operand_at + hole.operands
    values = list(ending.operands)[:given]
    with ir.InsertionPoint(ending):
        func.ReturnOp(values)
    ending.operation.erase()
    for operation in _sorted(block):
        entry.append(operation)


def _sorted(block: Any) -> list[Any]:
    """The operations of a block, each behind those whose results it reads; otherwise in the order that they have."""
    operations = [op.operation for op in block.operations]
    there = set(operations)
    done: dict[Any, None] = {}
    for operation in operations:
        stack = [operation]
        while stack:
            current = stack[-1]
            missing = [o for o in _read(current) if o in there and o not in done and o != current]
            if missing:
                stack += reversed(missing)
            else:
                done[stack.pop()] = None
    return list(done)


def _read(operation: Any) -> list[Any]:
    """The operations whose results an operation reads, those nested in it included."""
    found = []
    for inner in _walk(operation):
        for value in inner.operands:
            owner = value.owner
            if hasattr(owner, "results"):  # not a block: the value is no argument
                found.append(owner.operation)
    return found
