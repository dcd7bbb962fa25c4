"""Give a Dynamo graph two inputs more, through which it reaches what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from metis_compile.compat import copy_dynamo_graph, detect_fake_mode, fake_mode_of, synthetic_source
from metis_compile.conditioning import has_own_rank, kept_step
from metis_compile.ops.state import handle_of
from metis_compile.passes.graph.sites import GraphInputs, KeptName
from metis_compile.policy import OPERANDS, Policy
from metis_compile.state.keeper import Keeper
from metis_compile.state.kept import in_use, joined, named

HALVES = ("forward", "backward")  # of a graph: each reads and writes by an input of its own


def keeps(policy: Policy, *, training: bool) -> bool:
    """Whether a graph under a policy reads what is kept across steps: an amax that is held, in training also bases."""
    holds = any(treatment.hold_amax is not None for recipe in policy.recipes for treatment in recipe.treatments)
    return holds or (training and bool(_kept_splits(policy)))


def shapes_in_use(roots: Sequence[nn.Module], policy: Policy) -> dict[KeptName, tuple[int, ...]]:
    """The shapes of the bases that graphs of this process keep for these models, of several the first.

    None where no rank of the policy depends on how many rows a tensor has: nothing follows them then.
    """
    found: dict[KeptName, tuple[int, ...]] = {}
    if all(has_own_rank(split) for split in _kept_splits(policy)):
        return found
    for root in roots:
        for name, module in named(root):
            for attribute, part, shape in in_use(module):
                if len(shape) == 2:
                    found.setdefault((joined(name, attribute), part), shape)
    return found


def _kept_splits(policy: Policy) -> list[Any]:
    splits = [recipe.treatment(role).split for recipe in policy.recipes for role in OPERANDS]
    return [split for split in splits if split is not None and kept_step(split) is not None]


def with_state_inputs(
    gm: fx.GraphModule, inputs: GraphInputs, example_inputs: Sequence[Any]
) -> tuple[fx.GraphModule, GraphInputs, tuple[Tensor, ...]]:
    """A copy of a Dynamo graph with two inputs more; `gm` itself stays as it is.

    Returns the copy, its inputs, and handles to compile it with.
    """
    mode = fake_mode_of(example_inputs)
    with mode or nullcontext():  # those of a model that is fake are fake
        handles = tuple(handle_of(Keeper()) for _ in HALVES)
    fake_mode = detect_fake_mode([n.meta.get("example_value") for n in gm.graph.nodes])
    assert fake_mode is not None
    copied, placeholders = copy_dynamo_graph(gm)
    count = len(placeholders)
    with copied.graph.inserting_after(placeholders[-1]) if placeholders else copied.graph.inserting_before(None):
        for name, handle in reversed(list(zip(HALVES, handles, strict=True))):
            node = copied.graph.placeholder(f"metis_{name}_state")
            source = synthetic_source(f"metis_{name}_state")
            node._dynamo_source = source
            node.meta["example_value"] = fake_mode.from_tensor(handle, static_shapes=True, source=source)
    copied.recompile()
    return copied, replace(inputs, state=(count, count + 1)), handles
