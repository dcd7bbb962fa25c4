"""What the code that Inductor wrote reads and writes: which kernel touches which buffer."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NAMES = r"(buf|arg|primals_|tangents_)\w*|\w+_(codes|block_scales|tensor_scale)(_\w+)?"  # the last are saved by forward


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a kernel, by the names of the buffers in the code. What it updates in place it reads and writes.

    arguments: the buffers by parameter, of Triton kernels.
    """

    kernel: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    arguments: Mapping[str, str] = field(default_factory=dict)


def calls_in(code: str) -> list[Call]:
    """The calls of Triton kernels, of extern kernels and of operators, in order."""
    parameters = {name: given.split(", ") for name, given in re.findall(r"^def (triton_\w+)\(([^)]*)\)", code, re.M)}
    aliases: dict[str, str] = {}
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Name):
            aliases[node.targets[0].id] = node.value.id  # buf5 = buf3; del buf3  # reuse
    calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    for call in sorted(calls, key=lambda n: n.lineno):
        name = ast.unparse(call.func)
        if name.startswith("triton_") and name.endswith(".run"):
            kernel = name.removesuffix(".run")
            pairs = [(p, _name(a)) for p, a in zip(parameters[kernel], call.args, strict=False)]
            reads = tuple(b for p, b in pairs if b and p.startswith(("in_", "arg_")))  # arg_: a template's
            writes = tuple(b for p, b in pairs if b and p.startswith(("out_", "in_out")))
            arguments = {p: b for p, b in pairs if b}
            found.append(Call(kernel=kernel, reads=reads, writes=writes, arguments=arguments))
        elif name.startswith(("extern_kernels.", "torch.ops.")):
            out = tuple(b for k in call.keywords if k.arg == "out" and (b := _name(k.value)))
            lists = [a.elts if isinstance(a, ast.List) else [a] for a in call.args]
            given = tuple(b for elements in lists for a in elements if (b := _name(a)))
            found.append(Call(kernel=name, reads=given, writes=out))
    return found


def _name(argument: ast.expr) -> str | None:
    """The buffer of an argument, which may be a view of it."""
    for node in ast.walk(argument):
        if isinstance(node, ast.Name) and re.fullmatch(NAMES, node.id):
            return node.id
    return None
