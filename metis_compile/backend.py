"""The Dynamo backend: `torch.compile(model, backend="metis", options={"policy": ...})`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

import metis_compile
from metis_compile import ranks, schedule, state
from metis_compile.compat import (
    CustomGraphPass,
    bf16_gemm,
    compile_fx,
    compile_phase,
    compiles_a_backward,
    copy_dynamo_graph,
    exact_division,
    inductor_config,
    without_autograd_cache,
)
from metis_compile.kernels.gemm.lowering import register_gemm
from metis_compile.monitoring import monitor
from metis_compile.naming import outermost, report
from metis_compile.naming.graph_names import GraphNames, names_of
from metis_compile.naming.per_module import PerModule, variants
from metis_compile.naming.report import Report
from metis_compile.options import Config, read_options
from metis_compile.passes.context import Pass
from metis_compile.passes.graph.sites import GraphInputs
from metis_compile.passes.pipeline import AFTER_INDUCTOR, BEFORE_INDUCTOR, LOWERING, JointPasses, Passes
from metis_compile.passes.record import Recorder, RecordingPartitioner, Tally, active_captures, count
from metis_compile.policy import Policy, Schedule
from metis_compile.reporting import summary
from metis_compile.reporting.summary import SummaryRecord


def metis(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
    **_: Any,
) -> Callable[..., Any]:
    """Compiles a Dynamo graph with its matrix products quantized as a policy says.

    `options`: `policy` (a preset's name, a path, or a `Policy`; METIS_POLICY in the environment where options can't
    be passed), `on_error`, `verify`, `mode`, and any of torch._inductor.config's. Raises ValueError for an unknown
    option and PolicyError for a mistake in a policy. Registered under the entry point group `torch_dynamo_backends`.
    """
    config, patches = read_options(options, mode)
    if config.schedule is not None:
        return compile_stages(gm, example_inputs, config, patches, config.schedule)
    return compile_graph(gm, example_inputs, config, patches)


def reset() -> None:
    """Forgets what compiled models keep, and which models were compiled: torch.compiler.reset() calls it."""
    state.clear()
    ranks.clear()
    outermost.clear()
    report.clear()
    summary.clear()
    schedule.clear()
    monitor.clear()


metis.reset = reset  # type: ignore[attr-defined]


def compile_stages(
    gm: fx.GraphModule, example_inputs: Sequence[Any], config: Config, patches: dict[str, Any], stages: Schedule
) -> schedule.Staged:
    """Compiles `gm` for the stage that its model is in and all that follow; the present one last, for the summary."""
    names = names_of(gm)
    parameter = min(names.inputs.parameters, default=None)
    root = None if names.tree is None else names.tree.root
    modules = [module for module in (names.base, root) if module is not None]
    owner = None if parameter is None else example_inputs[parameter]
    first = schedule.stage_of(stages, schedule.position_of(owner, modules))
    compiled: list[Callable[..., Any]] = []
    seen: list[Sequence[summary.Summary]] = []
    for stage in reversed(stages.stages[first:]):
        copied, _ = copy_dynamo_graph(gm)
        of_stage = replace(config, policy=stage.policy, schedule=None)
        with summary.compiled() as found:
            compiled.insert(0, compile_graph(copied, example_inputs, of_stage, patches))
        seen.insert(0, found)

    def entered(index: int) -> None:
        summary.show(seen, index - first)

    return schedule.Staged(stages, first, compiled, parameter=parameter, modules=modules, entered=entered)


def compile_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: Config,
    patches: dict[str, Any],
    *,
    listed: bool = True,
    **compile_fx_kwargs: Any,
) -> Callable[..., Any]:
    """Runs Inductor on `gm` with the metis passes in front of its own.

    listed: whether what the graph keeps across steps is in `metis_compile.state_dict`, what is done to it in
    `metis_compile.summary` and in the log, and what a policy misses in a warning.
    """
    with compile_phase("metis_backend"):
        names = names_of(gm)
        if compiles_a_backward() and not names.inputs.parameters:  # products in it were treated with their forward
            config, listed = replace(config, policy=Policy.load("high")), False
        modules = variants(names, config.policy)
        told = Report(names, config.policy, [len(found) for found in modules.values()])
        if listed:
            nodes = gm.graph.find_nodes(op="placeholder")
            root = None if names.tree is None else names.tree.root
            ranks.note(root, [nodes[i].meta["example_value"] for i in names.inputs.parameters])
    if len(modules) < 2:
        compiled = _compile(gm, example_inputs, config, patches, names, names.base, told, listed, compile_fx_kwargs)
        if listed:
            told.finish()
        return compiled
    tree = names.tree
    assert tree is not None
    served = []
    for same in modules.values():
        names.write(tree.modules[id(same[0])])  # into what is copied
        copied, _ = copy_dynamo_graph(gm)
        served.append(
            _compile(copied, example_inputs, config, patches, names, same[0], told, listed, compile_fx_kwargs)
        )
    if listed:
        told.finish()
    return PerModule(served, modules, names, config.policy)


def _compile(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: Config,
    patches: dict[str, Any],
    names: GraphNames,
    module: nn.Module | None,
    told: Report,
    listed: bool,
    compile_fx_kwargs: dict[str, Any],
) -> Callable[..., Any]:
    """module: the one that it is compiled for, which has the class of `names.base`, or is that."""
    with compile_phase("metis_backend"):
        called = names.tree.modules[id(module)] if names.tree is not None else None
        inputs = names.write(called)
        owner = min(inputs.parameters, default=None)
        with_state = state.keeps(config.policy, training=torch.is_grad_enabled())
        if with_state:
            kept = state.shapes_in_use(names.roots, config.policy) if listed else {}
            under = (f"{called}.", f"{called}:") if called else ""
            inputs = replace(inputs, kept={name: shape for name, shape in kept.items() if name[0].startswith(under)})
        uuid = _uuid(gm, config, inputs)
        if with_state:
            gm, inputs, handles = state.with_state_inputs(gm, inputs, example_inputs)
            example_inputs = [*example_inputs, *handles]
    captures = active_captures()
    records = [capture.begin() for capture in captures]
    noted = SummaryRecord(gm, uuid, config.policy)
    tally = Tally(policy=config.policy)
    watched = monitor.watch(inputs, example_inputs, config.cpu_kernels) if listed else None
    seeing: list[Recorder] = [*records, noted, tally, *([] if watched is None else [watched])]
    joint = JointPasses(config=config, inputs=inputs, key=uuid, records=seeing, report=told.add)
    patches = {**exact_division(), **patches}
    register_gemm()  # here too: what a warm cache serves may call it, and has no pass run

    def stage(name: str, passes: Sequence[Pass], see: Callable[[fx.Graph], None] | None = None) -> Passes:
        return Passes(passes, config=config, key=uuid, stage=name, see=see)

    _place(patches, "joint_custom_pre_pass", joint, stage("before_inductor", BEFORE_INDUCTOR))
    _place(patches, "joint_custom_post_pass", stage("after_inductor", AFTER_INDUCTOR))
    _place(patches, "post_grad_custom_pre_pass", stage("lowering", LOWERING, noted.parted))
    if records:  # what is shown must come from this compile, not from a cached one
        patches["force_disable_caches"] = True
        inner = patches.get("custom_partitioner_fn", inductor_config.custom_partitioner_fn)
        patches["custom_partitioner_fn"] = RecordingPartitioner(records, inner)
    if listed and "inner_compile" in compile_fx_kwargs:
        compile_fx_kwargs = {**compile_fx_kwargs, "inner_compile": noted.compiling(compile_fx_kwargs["inner_compile"])}
    if watched is not None:
        inner = watched.compiling(compile_fx_kwargs.get("inner_compile"))
        compile_fx_kwargs = {**compile_fx_kwargs, "inner_compile": inner}
    # The key of AOTAutograd's cache says nothing of what compiles its graphs, and no pass sees a graph that comes from
    # it. Inductor's own cache is read.
    caches: AbstractContextManager[Any] = (
        without_autograd_cache() if "inner_compile" in compile_fx_kwargs else nullcontext()
    )
    with caches:
        compiled: Any = compile_fx(gm, list(example_inputs), config_patches=patches, **compile_fx_kwargs)
    count(tally)
    if not tally.seen:
        told.add_unseen()
    if listed:
        owners = [None if owner is None else example_inputs[owner], told.base]
        noted.finish([each for each in owners if each is not None])
    if not with_state:
        return compiled
    return state.Stateful(compiled, parameter=owner, listed=listed, module=module, name=called or "", roots=names.roots)


class _Chain(CustomGraphPass):
    """Passes one after the other."""

    def __init__(self, passes: Sequence[Any]) -> None:
        self.passes = passes

    def __call__(self, graph: fx.Graph) -> None:
        for each in self.passes:
            each(graph)

    def uuid(self) -> Any:
        ids = [each.uuid() if isinstance(each, CustomGraphPass) else None for each in self.passes]
        return ids if all(ids) else None


def _place(patches: dict[str, Any], option: str, first: CustomGraphPass, *last: CustomGraphPass) -> None:
    """Sets our passes for an option of Inductor's, around those that the user set for the same place."""
    theirs = patches.get(option, getattr(inductor_config, option)) or []
    passes = [first, *(theirs if isinstance(theirs, (list, tuple)) else [theirs]), *last]
    patches[option] = _Chain(passes) if len(passes) > 1 else first


def _uuid(gm: fx.GraphModule, config: Config, inputs: GraphInputs) -> str:
    """What Inductor's cache key lacks: our version and sources, the policy, and what the rules may look at."""
    text = [metis_compile.__version__, sources_digest(), config.policy.digest(), config.on_error]
    text += [f"by_rank={ranks.draws_by_rank()}"]
    text += [f"cpu_kernels={config.cpu_kernels} bf16_gemm={bf16_gemm() is not None}"]
    text += [f"{i}={name}" for i, name in sorted(inputs.parameters.items())]
    text += [f"{sorted(inputs.buffers)} {sorted(inputs.arguments)}"]
    text += [f"{sorted(inputs.depths.items())} {sorted(inputs.heads)} {sorted(inputs.embeddings)} {inputs.vocabulary}"]
    text += [f"{sorted(inputs.kept.items())}"]
    for node in gm.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        functions = node.meta.get("source_fn_stack") or []
        text.append(f"{node.name} {[path for path, _ in stack.values()]} {[name for name, _ in functions]}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


# What decides the code of a graph, of all that is in the package.
DECIDING = ("numerics", "conditioning", "ops", "cost_model", "policy", "kernels", "passes", "naming", "state")


@cache
def sources_digest() -> str:
    """A hash of every source that decides compiled code: a changed pass or kernel is never served from a cache."""
    return digest_of(Path(metis_compile.__file__).parent)


def digest_of(root: Path) -> str:
    """A hash of the names and contents of the Python and C++ files of a package's root and its DECIDING folders."""
    digest = hashlib.sha256()
    paths = {p for f in DECIDING for p in (root / f).rglob("*")} | set(root.glob("*"))  # some folders may be links
    for path in sorted(p for p in paths if p.suffix in (".py", ".cpp", ".h")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()
