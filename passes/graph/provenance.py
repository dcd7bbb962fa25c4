"""Names for people: which module called a product, what it wrote, on which line, and where in the model's depth."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import fx

from metis_compile.compat import OpOverload
from metis_compile.policy import OPS


def schema_name(node: fx.Node) -> str:
    return node.target._schema.name if isinstance(node.target, OpOverload) else ""


def op_name(node: fx.Node) -> str:
    """What the model wrote, from the call that Dynamo recorded; else the aten op's name."""
    stack = node.meta.get("source_fn_stack") or node.meta.get("fwd_source_fn_stack")
    if stack:
        function = stack[-1][1]
        name = function if isinstance(function, str) else getattr(function, "__name__", "")
        name = name.lower().strip("_")
        if name in OPS:
            return name
    return schema_name(node).removeprefix("aten::")


def module_name(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return ""
    return clean_path(list(stack.values())[-1][0])


def clean_path(path: str) -> str:
    """Dynamo's `L['self']._modules['blocks'][0].up` as `blocks.0.up`."""
    path = re.sub(r"\[['\"]?([^'\"\]]*)['\"]?\]", r".\1", path)
    path = re.sub(r"\.(__dict__|__self__|_modules|_parameters|_buffers|_orig_mod)\b", "", path)
    path = re.sub(r"^[LG]\.[^.]+\.?", "", path)
    return path.strip(".")


def source_line(node: fx.Node) -> str:
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    found = [frame for frame in found if not frame[0].startswith("<")]  # code of no file, such as a dry run's
    if not found:
        return ""  # a module whose caller Dynamo did not trace, such as the root itself
    file, line = found[-1]
    return f"{file.rsplit('/', 1)[-1]}:{line}"


def split_block(module: str) -> tuple[str, int] | None:
    """`transformer.h.3.attn` -> ("transformer.h", 3): where in the depth of the model a module stands."""
    parts = module.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:i]), int(part)
    return None


def block_counts(graph: fx.Graph, depths: Mapping[str, int]) -> dict[str, int]:
    """How many blocks each list of them has: in the model (`depths`), or at least in the graph."""
    counts = dict(depths)
    for node in graph.nodes:
        split = split_block(module_name(node))
        if split is not None:
            counts[split[0]] = max(counts.get(split[0], 0), split[1] + 1)
    return counts


def block_of(module: str, counts: dict[str, int]) -> tuple[int, int] | None:
    split = split_block(module)
    return (split[1], counts[split[0]]) if split is not None else None
