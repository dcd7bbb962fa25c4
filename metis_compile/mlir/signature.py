"""What goes into an exported function and comes out of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from metis_compile.compat import dynamo_source, is_buffer_input, is_parameter_input
from metis_compile.naming.graph_names import input_name
from metis_compile.passes.graph.provenance import clean_path

Kind = Literal["parameter", "buffer", "input", "state", "seed", "saved", "tangent", "output", "gradient"]


@dataclass(frozen=True, kw_only=True)
class Port:
    """One argument or result of an exported function.

    | kind | as an argument | as a result |
    | --- | --- | --- |
    | parameter | as the model holds it | |
    | buffer | as the model holds it | what the model changed it to |
    | input | an argument of the model | what the model changed it to |
    | state | what the policy keeps across steps | the same for the next step |
    | seed | int64, of all that is rounded at random: a new one each step | |
    | saved | what forward saved, for backward | the same, from forward |
    | tangent | the gradient of an output | |
    | output | | what the model returns |
    | gradient | | of a parameter or an input |
    """

    kind: Kind
    name: str  # of the parameter, buffer or argument; "0" and up for outputs, and for the tangents of these
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {list(self.shape)} {str(self.dtype).removeprefix('torch.')}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"kind": self.kind, "name": self.name, "shape": list(self.shape), "dtype": dtype}


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one of Dynamo's graph inputs is to the model."""

    kind: Kind
    name: str


def sources(gm: fx.GraphModule, model: Callable[..., Any]) -> list[Source]:
    """Of each input of a Dynamo graph of `run(*args, **kwargs)`, which calls `model`, in order."""
    names = _argument_names(model)
    found = []
    for node in gm.graph.find_nodes(op="placeholder"):
        if is_parameter_input(node):
            found.append(Source(kind="parameter", name=input_name(node)))
        elif is_buffer_input(node):
            found.append(Source(kind="buffer", name=input_name(node)))
        else:
            found.append(Source(kind="input", name=_argument(dynamo_source(node), names) or node.name))
    return found


def _argument_names(model: Callable[..., Any]) -> list[str]:
    function = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables have none
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _argument(source: str, names: Sequence[str]) -> str:
    """`L['args'][0]['ids']` as `tokens.ids`, where the model's first argument is `tokens`."""
    found = re.match(r"L\['(args|kwargs)'\]\[(?:'(\w+)'|(\d+))\](.*)", source)
    if found is None:
        return clean_path(source)
    _, keyword, position, rest = found.groups()
    name = keyword or (names[int(position)] if int(position) < len(names) else f"args.{position}")
    return name + re.sub(r"\[['\"]?([^'\"\]]*)['\"]?\]", r".\1", rest)
