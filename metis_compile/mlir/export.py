"""`export_mlir`: a model under a policy, as MLIR. What happens, top to bottom."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import fx

from metis_compile.compat import DynamoUnsupported
from metis_compile.inspection.dry_run import DryRun, dry_run
from metis_compile.mlir.errors import ExportError
from metis_compile.mlir.exported import Exported, Program
from metis_compile.mlir.functional import Functional, copy_module, functional_graphs
from metis_compile.mlir.lowering import DIALECTS, load_torch_mlir, lower
from metis_compile.mlir.signature import sources
from metis_compile.mlir.sites import place_of
from metis_compile.options import one_policy, read_options
from metis_compile.policy import Policy
from metis_compile.spelling import did_you_mean

# torch's own random ops, which are refused by name, and no patterns, which make ops that only Inductor knows
CAUSES = "none where it does nothing with tensors, several where parts of it are compiled by themselves"
_PATCHES = {"fallback_random": True, "pattern_matcher": False}


def export_mlir(
    model: Callable[..., Any],
    *args: Any,
    policy: str | os.PathLike[str] | Policy | None = None,
    dialect: str = "linalg",
    **kwargs: Any,
) -> Exported:
    """The forward and backward graphs that backend="metis" makes of `model(*args, **kwargs)`, as MLIR.

    Each quantization and each dequantization is a private function, called where it is used, of uint8 codes (FP4 two
    to a byte), their scales, and float32 values: see `metis_compile.mlir.functions`. Parameters, what the policy keeps
    across steps, and the seed of stochastic rounding are arguments.

    dialect: "linalg" (on tensors, with arith and math), "torch" (torch-mlir's backend form) or "stablehlo". The model
    runs once, eagerly, and is left as it was, as for `metis_compile.explain`.
    Raises ExportError, in one line, for what can't be exported and where it is, for another dialect, and where
    torch-mlir is missing; PolicyError for a mistake in the policy; and what the model raises.
    """
    if dialect not in DIALECTS:
        hint = did_you_mean(str(dialect), DIALECTS, cutoff=0.6)
        raise ExportError(f"dialect must be one of {', '.join(map(repr, DIALECTS))}, got {dialect!r}{hint}")
    load_torch_mlir()
    config, patches = read_options({} if policy is None else {"policy": policy}, None)
    one_policy(config, "export_mlir")
    run = _captured(model, args, kwargs, config, {**patches, **_PATCHES})
    captured = run.captured.graphs[0]
    programs = []
    for program in functional_graphs(captured, sources(run.dynamo[0], getattr(model, "_orig_mod", model))):

        def place(node: fx.Node, stage: str = program.name) -> str:
            return place_of(node, captured, stage)

        programs.append(_program(program, dialect, place))
    return Exported(policy=config.policy.name, dialect=dialect, programs=tuple(programs))


def _captured(model: Any, args: Any, kwargs: Any, config: Any, patches: dict[str, Any]) -> DryRun:
    try:
        run = dry_run(model, args, kwargs, config, patches, fullgraph=True, dynamic=False)
    except DynamoUnsupported as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"the model is not one graph, and only one can be exported: {reason}") from error
    if len(run.captured.graphs) != 1:
        raise ExportError(f"one graph can be exported, and the model has {len(run.captured.graphs)}: {CAUSES}")
    return run


def _program(program: Functional, dialect: str, place: Callable[[fx.Node], str]) -> Program:
    mlir, functions = lower(program.name, copy_module(program.graph), dialect, place)
    return Program(
        name=program.name,
        mlir=mlir,
        inputs=program.inputs,
        outputs=program.outputs,
        functions=tuple(functions),
        graph=program.graph,
    )
