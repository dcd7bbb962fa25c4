"""A program as its source: what the fuzzer draws, shrinks, prints and runs."""

from __future__ import annotations

import linecache
import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

Results = dict[str, Tensor]
HEADER = '''\
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def skewed(seed, *shape):
    """With a mean over the rows and a column of outliers, as activations have them."""
    x = randn(seed, *shape) + randn(seed + 1, shape[-1])
    x[..., 0] *= 8
    return x
'''


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Lines that set `target`, which no other statement sets."""

    target: str
    code: str

    @property
    def reads(self) -> set[str]:
        return set(re.findall(r"\b(?:[vx]\d+|self\.\w+)\b", self.code)) - {self.target}


@dataclass(frozen=True, kw_only=True)
class Program:
    """inputs, attributes: names -> expressions. tracked: the inputs of which a gradient is asked."""

    inputs: dict[str, str]
    tracked: frozenset[str]
    attributes: dict[str, str]
    statements: tuple[Statement, ...]
    dtype: str = "float32"
    dynamic: bool = False
    patterns: bool = False  # whether Inductor's pattern matcher runs, which takes a third of the time of a case
    kinds: frozenset[str] = field(default=frozenset(), compare=False)  # of the statements

    @property
    def outputs(self) -> list[str]:
        read = {name for s in self.statements for name in s.reads}
        return [s.target for s in self.statements if s.target not in read] or list(self.inputs)

    def cleaned(self) -> Program:
        """Without inputs and attributes that nothing reads."""
        read = {name for s in self.statements for name in s.reads} | set(self.outputs)
        attributes, before = dict(self.attributes), -1
        while before != len(attributes):
            before = len(attributes)
            used = read | {n for code in attributes.values() for n in re.findall(r"self\.\w+", code)}
            attributes = {name: code for name, code in attributes.items() if f"self.{name}" in used}
        inputs = {name: code for name, code in self.inputs.items() if name in read}
        return replace(self, inputs=inputs, tracked=self.tracked & set(inputs), attributes=attributes)

    @property
    def source(self) -> str:
        lines = [HEADER, "", "class Program(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines.append("        torch.manual_seed(0)")
        lines += [f"        self.{name} = {code}" for name, code in self.attributes.items()]
        lines += ["", f"    def forward({', '.join(['self', *self.inputs])}):"]
        lines += [f"        {line}" for s in self.statements for line in s.code.splitlines()]
        lines += [f"        return {', '.join(self.outputs)},", "", ""]
        lines += ["def inputs(more=0):", '    """more: rows that are added to each, for sizes that change."""']
        lines += [f"    {name} = ({code}).to(torch.{self.dtype})" for name, code in self.inputs.items()]
        lines += [f"    {name}.requires_grad_()" for name in self.inputs if name in self.tracked]
        lines += [f"    return {', '.join(self.inputs)}{',' if self.inputs else '()'}", ""]
        return "\n".join(lines)

    def build(self) -> tuple[nn.Module, Any]:
        """The module, and the function that makes its inputs."""
        name = f"<program {abs(hash(self.source))}>"
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(keepends=True), name)
        scope: dict[str, Any] = {"__name__": "program"}
        exec(compile(self.source, name, "exec"), scope)
        model = scope["Program"]().to(getattr(torch, self.dtype))
        return model, scope["inputs"]


def train_step(model: nn.Module, run: Any, inputs: Any, given: Any = lambda gradient: None) -> Results:
    """Outputs, and the gradients of what they depend on, for a gradient of the outputs that is the same each time.

    given: called with each of these before it is used.
    """
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    tensors = {f"x{i}": x for i, x in enumerate(inputs)} | dict(model.named_parameters())
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    outputs = run(*inputs)
    results = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    trained = [y for y in outputs if y.requires_grad]
    if trained:
        generator = torch.Generator().manual_seed(0)
        gradients = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in trained]
        for gradient in gradients:
            given(gradient)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(trained, gradients)  # not grad(): reentrant checkpoints refuse it
        results |= {f"gradient of {n}": leaf.grad.clone() for n, leaf in leaves.items() if leaf.grad is not None}
    return results
