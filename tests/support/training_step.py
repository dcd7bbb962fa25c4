"""One training step of a small model: compiled for kernels, and the reference, which runs the rewritten graph eagerly.

Both draw the same random numbers. What the reference does is checked elsewhere: the numerics it calls, the rewrite by
hand-written formulas.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from graphs import eager_backend
from torch import Tensor, nn

import metis_compile
from metis_compile import CapturedGraph

PRESETS = ("nvfp4", "averis", "metis", "best", "metis-fp8", "mxfp4", "mxfp8", "fp8")
LAYERS = 2


class TwoLinears(nn.Module):
    """[tokens, inputs] -> [tokens, outputs], with a bias in the first."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Linear(inputs, hidden)
        self.down = nn.Linear(hidden, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class Mixture(nn.Module):
    """[tokens, inputs] -> [tokens, outputs], by two matrices of the expert that each token is sorted to."""

    def __init__(self, offs: list[int], inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(len(offs), hidden, inputs) / inputs**0.5)
        self.down = nn.Parameter(torch.randn(len(offs), outputs, hidden) / hidden**0.5)
        self.register_buffer("offs", torch.tensor(offs, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return self.of_experts(torch.relu(self.of_experts(x, self.up)), self.down)

    def of_experts(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16:
            return torch._grouped_mm(x, weight.mT, offs=self.offs)  # type: ignore[arg-type]
        return torch.ops.transformers.grouped_mm_fallback(x, weight.mT, self.offs)  # type: ignore[no-any-return]


def start_mixture(offs: list[int], tokens: int, inputs: int, hidden: int, outputs: int) -> tuple[Mixture, Tensor]:
    """A mixture, and the input that `start` has. Without `transformers` there are none but in bfloat16."""
    import transformers.integrations.moe  # noqa: F401 (registers its operators)

    _, x = start(tokens, inputs, hidden, outputs)
    return Mixture(offs, inputs, hidden, outputs), x


def start(tokens: int, inputs: int, hidden: int, outputs: int) -> tuple[TwoLinears, Tensor]:
    """A model, and an input with a mean and a dominant direction."""
    torch.manual_seed(0)
    model = TwoLinears(inputs, hidden, outputs)
    x = torch.randn(tokens, inputs) + torch.randn(inputs)
    return model, x + 3 * torch.randn(tokens, 1) @ torch.randn(1, inputs)


def step(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    """Loss, output, and the gradients of the input and of every parameter."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = run(x)
    loss = y.square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"loss": loss.detach(), "y": y.detach(), "x": x.grad, **gradients}


def compiled_step(
    start: nn.Module, x: Tensor, preset: str, **options: Any
) -> tuple[dict[str, Tensor], list[str], CapturedGraph]:
    """The step as Inductor compiles it: its results, the code of forward and backward, and the graphs."""
    from torch._inductor.utils import run_and_get_code

    torch.compiler.reset()
    model = copy.deepcopy(start)
    given = {"policy": preset, "fallback_random": True, **options}
    with metis_compile.capture() as captured:
        results, codes = run_and_get_code(step, model, torch.compile(model, backend="metis", options=given), x)
    (graph,) = captured.graphs
    return results, codes, graph


def reference_step(start: nn.Module, x: Tensor, preset: str) -> dict[str, Tensor]:
    """The step with every operator of the rewritten graph run by itself."""
    torch.compiler.reset()
    model = copy.deepcopy(start)
    return step(model, torch.compile(model, backend=eager_backend(preset, fallback_random=True)), x)


def gemm_calls(codes: Sequence[str]) -> tuple[int, int]:
    """How many products the code gives to Triton templates, and how many to the choice without one."""
    code = "\n".join(codes)
    return len(re.findall(r"\btriton_tem_\w+\.run\(", code)), len(re.findall(r"extern_kernels\.metis_gemm\w*\(", code))
