"""Compile a model as backend="metis" would, to look at its graphs: nothing is generated, trained or kept."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import fx

from metis_compile.backend import compile_graph
from metis_compile.compat import make_boxed_func
from metis_compile.options import Config
from metis_compile.passes.record import Captured, capture


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What was captured, and the graphs that Dynamo handed over, one for each that was captured."""

    captured: Captured
    dynamo: list[fx.GraphModule] = field(default_factory=list)


def dry_run(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    config: Config,
    patches: dict[str, Any],
    **compile_kwargs: Any,
) -> DryRun:
    """Captures `model(*args, **kwargs)` anew, past all caches, and runs its forward once, eagerly; no backward runs.

    Buffers, gradients and the states of torch's, Python's and NumPy's generators are left as they were. `model` may
    be compiled already. compile_kwargs: of torch.compile. Raises what the model and the compile raise.
    """
    model = getattr(model, "_orig_mod", model)
    dynamo: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        dynamo.append(gm)
        return compile_graph(gm, example_inputs, config, patches, listed=False, inner_compile=run_eagerly)

    def run(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    assert isinstance(run, FunctionType)
    with _undisturbed(model), capture() as captured:
        torch.compile(_own_code(run), backend=backend, **compile_kwargs)(*args, **kwargs)
    return DryRun(captured=captured, dynamo=dynamo)


def run_eagerly(gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
    """In place of Inductor's code generation: the graph as it is."""
    return make_boxed_func(gm.forward)


def _own_code(function: FunctionType) -> FunctionType:
    """`function` with a code object of its own, so that Dynamo's cache of earlier calls has no part in this one."""
    code = function.__code__.replace(co_name="dry_run_model", co_filename="<dry run>")
    return FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Puts buffers and generators back as they were."""
    buffers = dict(model.named_buffers()) if isinstance(model, torch.nn.Module) else {}
    kept = {name: (buffer, buffer.detach().clone()) for name, buffer in buffers.items()}
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept.values():
                    buffer.copy_(value)
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
