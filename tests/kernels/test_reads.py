"""How often a compiled graph reads what it quantizes: once, but where the largest magnitude must be known of before.

That comes from the kernel that makes a tensor, where it is one of Inductor's. What a product writes, and what comes
from outside, is read for it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memory_accesses import Call, calls_in
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from metis_compile import Policy

pytest.importorskip("triton")
QUANTIZE = "torch.ops.metis.quantize_tiles_into.default"
AMAX = "torch.ops.metis.tiles_amax.default"
TOKENS, WIDTH = 24, 384  # more elements than Inductor reduces in one step


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the code that counts, and Triton's interpreter takes its time."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    from metis_compile.kernels.quantize import amax, tiles

    monkeypatch.setattr(CachingAutotuner, "run", lambda *given, **how: None)
    monkeypatch.setattr(tiles, "quantize_tiles", lambda *given, **how: None)
    monkeypatch.setattr(amax, "tiles_amax", lambda source, axis: torch.zeros(()))


def activations(how: str, weight: str = '"high"') -> Policy:
    return Policy.from_toml(
        f"""
        [recipe.r]
        weight = {weight}
        activation = {{ format = "nvfp4"{how} }}
        gradient = "high"
        [[rule]]
        module = "quantized"
        recipe = "r"
        [[rule]]
        recipe = "high"
        """
    )


class Between(nn.Module):
    """A linear whose input is made by `made` of the module's."""

    def __init__(self, made: nn.Module) -> None:
        super().__init__()
        self.made, self.quantized = made, nn.Linear(WIDTH, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.quantized(self.made(x))  # type: ignore[no-any-return]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(8, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :8]
        return nn.functional.silu(self.gate(x)) * self.up(x)


def compiled_calls(model: nn.Module, how: str = "", tokens: int = TOKENS) -> list[Call]:
    """The calls of the compiled forward."""
    weight = f'{{ format = "nvfp4"{how} }}' if "hadamard" in how else '"high"'  # a transform is of both operands
    options = {"policy": activations(how, weight), "max_autotune_gemm": False}
    run = torch.compile(model.bfloat16(), backend="metis", options=options)
    x = torch.randn(tokens, WIDTH, dtype=torch.bfloat16)
    with torch.no_grad():
        _, (code,) = run_and_get_code(run, x)
    return calls_in(code)


def readers_of_what_is_quantized(calls: list[Call]) -> tuple[str, list[str]]:
    """The quantized buffer, and the kernels that read it."""
    quantized = next(call.reads[0] for call in calls if call.kernel == QUANTIZE)
    return quantized, [call.kernel for call in calls if quantized in call.reads and quantized not in call.writes]


@pytest.mark.parametrize("made", [nn.RMSNorm(WIDTH), Gated()], ids=["norm", "gated"])
def test_the_kernel_that_makes_a_tensor_finds_its_largest_magnitude(triton_on_cpu: Any, made: nn.Module) -> None:
    calls = compiled_calls(Between(made))
    quantized, readers = readers_of_what_is_quantized(calls)
    assert readers == [QUANTIZE]
    (maker,) = [call for call in calls if quantized in call.writes]
    assert maker.kernel.startswith("triton_")
    assert len({*maker.writes} - {*maker.reads, quantized}) == 1  # beside the tensor the maxima of its parts


@pytest.mark.parametrize("made", [nn.Linear(WIDTH, WIDTH, bias=False), nn.Identity()], ids=["product", "input"])
def test_what_others_make_is_read_for_it(triton_on_cpu: Any, made: nn.Module) -> None:
    _, readers = readers_of_what_is_quantized(compiled_calls(Between(made)))
    assert len(readers) - readers.count(QUANTIZE) >= 1


@pytest.mark.parametrize(
    ("how", "reading"),
    [
        (', split = "mean"', 2),  # mean, largest and least of each column in one; and the quantization
        (', split = { kind = "spectral", rank = 9 }', None),
        (', hadamard = "fixed"', 2),
    ],
    ids=["mean", "spectral", "hadamard"],
)
def test_what_is_made_in_registers_is_stored_nowhere(triton_on_cpu: Any, how: str, reading: int | None) -> None:
    calls = compiled_calls(Between(nn.Identity()), how, tokens=16)
    quantized, readers = readers_of_what_is_quantized(calls)
    assert quantized.startswith("arg")
    ours = [reader for reader in readers if reader in (QUANTIZE, AMAX)]
    assert ours == ([QUANTIZE] if "mean" in how else [AMAX, QUANTIZE])
    assert reading is None or len(readers) == reading
