"""Compile a model as backend="metis" would, to look at its graphs: nothing is generated, trained or kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx

from metis_compile.backend import compile_graph
from metis_compile.compat import (
    VALUE_OF_FAKE_ERRORS,
    OpOverload,
    aot_output,
    detached_dynamo_state,
    make_boxed_func,
)
from metis_compile.inspection.repeats import Alike, Cut, cut_repeats, whole
from metis_compile.inspection.stand_ins import stand_ins
from metis_compile.inspection.undisturbed import Keep, undisturbed
from metis_compile.naming.graph_names import names_of
from metis_compile.options import Config
from metis_compile.passes.graph.provenance import block_of
from metis_compile.passes.record import Captured, capture
from metis_compile.policy import Policy


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What was captured, and the graphs that Dynamo handed over, one for each that was captured."""

    captured: Captured
    dynamo: list[fx.GraphModule] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)  # which of a graph's repeated blocks were captured; for each graph


def dry_run(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    config: Config,
    patches: dict[str, Any],
    *,
    once: bool = False,
    plain: bool = False,
    **compile_kwargs: Any,
) -> DryRun:
    """Captures `model(*args, **kwargs)` anew, past all caches, and runs its forward once, eagerly and unquantized.

    The model, its arguments and the generators are left as they were: see `undisturbed`. Neither what Dynamo has
    learned of sizes that change from call to call, nor what it has compiled, has a part in this or is changed by it.
    `model` may be compiled already, and its tensors may be fake or on the meta device: see `stand_ins`.
    once: blocks that are alike are captured once, see `cut_repeats`. plain: see `capture`. compile_kwargs: of
    torch.compile.
    Raises what the model and the compile raise, and RuntimeError where the model reads the value of a tensor that is
    fake or on the meta device.
    """
    model = getattr(model, "_orig_mod", model)
    dynamo: list[fx.GraphModule] = []
    cuts: list[Cut] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        dynamo.append(gm)
        cuts.append(cut_repeats(gm, _alike(names_of(gm).write().depths, config.policy)) if once else whole(gm))
        inputs = [example_inputs[i] for i in cuts[-1].inputs]
        compile_graph(cuts[-1].gm, inputs, config, patches, listed=False, inner_compile=run_eagerly)
        return _keeping(gm, [cuts[-1].inputs[i] for i in _written(captured)], keep)

    def run(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    assert isinstance(run, FunctionType)
    own: dict[str, Any] = {"isolate_recompiles": True}
    own = {k: v for k, v in own.items() if k in inspect.signature(torch.compile).parameters}  # from torch 2.13 on
    with (
        detached_dynamo_state(),
        capture(plain=plain) as captured,
        undisturbed(model, (args, kwargs)) as keep,
        stand_ins(model, (tuple(args), dict(kwargs))) as (given, given_by_name),
    ):
        try:
            torch.compile(_own_code(run), backend=backend, **own, **compile_kwargs)(*given, **given_by_name)
        except VALUE_OF_FAKE_ERRORS as error:
            raise RuntimeError(
                "metis: the model reads the value of a tensor, and its tensors have none, since they are fake or on "
                f"the meta device: build it on a real device, or smaller ({type(error).__name__}: {error})"
            ) from error
    return DryRun(captured=captured, dynamo=dynamo, cuts=cuts)


def _alike(depths: Mapping[str, int], policy: Policy) -> Alike:
    """Whether no rule tells two modules from each other, by name or depth. depths: blocks in each list."""
    counts = dict(depths)

    @cache
    def rules(module: str) -> list[bool]:
        return [rule.matches_place(module, block_of(module, counts)) for rule in policy.rules]

    return lambda one, other: rules(one) == rules(other)


def run_eagerly(gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
    """In place of Inductor's code generation: the graph as it is."""
    return make_boxed_func(gm.forward)


def _keeping(gm: fx.GraphModule, written: Sequence[int], keep: Keep) -> Callable[..., Any]:
    """Runs Dynamo's graph as it is, after the values of those inputs were kept that it writes to."""

    def run(*args: Any) -> Any:
        for position in written:
            if isinstance(args[position], Tensor):
                keep(args[position])
        return gm(*args)

    return run


def _written(captured: Captured) -> list[int]:
    """The positions of the inputs that the last captured graph writes to."""
    graph = captured.graphs[-1].joint_before
    if graph is None:  # nothing but the calls of other graphs
        return []
    found = set()
    (output,) = graph.graph.find_nodes(op="output")
    for desc in output.meta.get("desc") or ():
        kind, _, position = aot_output(desc)
        if kind == "output" and isinstance(position, int):
            found.add(position)
    for position, node in enumerate(graph.graph.find_nodes(op="placeholder")):
        if any(_writes_to(user, node) for user in node.users):
            found.add(getattr(node.meta.get("desc"), "idx", position))
    return sorted(found)


def _writes_to(user: fx.Node, node: fx.Node) -> bool:
    if not isinstance(user.target, OpOverload):
        return False
    arguments = user.target._schema.arguments
    named = [*zip(arguments, user.args, strict=False), *((a, user.kwargs.get(a.name)) for a in arguments)]
    return any(given is node and a.alias_info is not None and a.alias_info.is_write for a, given in named)


def _own_code(function: FunctionType) -> FunctionType:
    """`function` with a code object of its own, so that Dynamo's cache of earlier calls has no part in this one."""
    code = function.__code__.replace(co_name="dry_run_model", co_filename="<dry run>")
    return FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
