"""Give a Dynamo graph two inputs more, for its state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from metis_compile.compat import copy_dynamo_graph, detect_fake_mode, fake_mode_of, synthetic_source
from metis_compile.passes.graph.sites import GraphInputs
from metis_compile.state.flat import NAMES, State, new_state


def with_state_inputs(
    gm: fx.GraphModule, inputs: GraphInputs, example_inputs: Sequence[Any], sizes: tuple[int, int]
) -> tuple[fx.GraphModule, GraphInputs, State, int | None]:
    """A copy of a Dynamo graph with two inputs more, for its state; `gm` itself stays as it is.

    Returns the copy, its inputs, the first state, and which input tells whose state it is.
    """
    mode = fake_mode_of(example_inputs)
    with mode or nullcontext():  # the state of a model that is fake is fake
        state = new_state(sizes, _device(example_inputs))
    fake_mode = detect_fake_mode([n.meta.get("example_value") for n in gm.graph.nodes])
    assert fake_mode is not None
    copied, placeholders = copy_dynamo_graph(gm)
    count = len(placeholders)
    with copied.graph.inserting_after(placeholders[-1]) if placeholders else copied.graph.inserting_before(None):
        for name, tensor in reversed(list(zip(NAMES, state, strict=True))):
            node = copied.graph.placeholder(f"metis_{name}_state")
            source = synthetic_source(f"metis_{name}_state")
            node._dynamo_source = source
            node.meta["example_value"] = fake_mode.from_tensor(tensor, static_shapes=True, source=source)
    copied.recompile()
    owner = min(inputs.parameters, default=None)
    return copied, replace(inputs, state=(count, count + 1)), state, owner


def _device(example_inputs: Sequence[Any]) -> torch.device:
    """Where most of the inputs lie."""
    devices = [t.device for t in example_inputs if isinstance(t, Tensor)]
    return max(devices, key=devices.count) if devices else torch.device("cpu")
