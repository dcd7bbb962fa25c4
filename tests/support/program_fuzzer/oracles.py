"""What must hold of a program and a policy. Each oracle raises `Mismatch`, or whatever the compiler raises.

Results are compared by relative Frobenius norms. How far rounding alone may carry them is measured for each program:
the operands of all its eager products are moved by a few last bits, to see what it makes of that.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, Protocol
from unittest import mock

import torch
from graphs import eager_backend
from torch import Tensor
from without_quantization import remove_quantization

from metis_compile import Policy
from metis_compile.passes import pipeline
from metis_compile.passes.context import PassContext, PassResult
from program_fuzzer.emulation import Emulation
from program_fuzzer.program import Results, train_step

# Of each dtype, a few last bits: what another order of sums, or an operator that is written out, changes.
LAST_BITS = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float64: 1e-14}
# Nearest codes change with the last bit now and then: more of it, so that what is measured has more such elements.
MORE_BITS = {**LAST_BITS, torch.float32: 1e-5}
# More than the coarsest formats do to an operand: E2M1 at random is off by 0.15 to 0.2.
COARSE = dict.fromkeys(LAST_BITS, 0.25)
FLOOR = {
    "float32": 1e-5,
    "float64": 1e-5,
    "bfloat16": 1e-2,
    "float16": 2e-3,
}  # float64 programs have bfloat16 and float32 parts too


class Runs(Protocol):
    """What an oracle needs of a program; build: the module, and what makes its inputs, with so many rows more."""

    dtype: str
    dynamic: bool
    patterns: bool

    def build(self) -> tuple[Any, Callable[[int], Any]]: ...


class Mismatch(AssertionError):
    """A result that is not what it must be."""


def high(program: Runs, policy: str) -> None:
    """Quantizing nothing changes nothing."""
    _check(program, Policy.load("high"), expected=None, noise=LAST_BITS, floor=FLOOR[program.dtype])


def nearest(program: Runs, policy: str) -> None:
    """Formats alone, rounded to nearest: what the emulation gives."""
    chosen = Policy.from_toml(policy)
    _check(program, chosen, expected=chosen, noise=MORE_BITS, floor=max(2e-3, 2 * FLOOR[program.dtype]))


def splits(program: Runs, policy: str) -> None:
    """Splits and transforms without quantization change nothing; what is split off may be ten times the result."""
    with without_quantization():
        chosen = Policy.from_toml(policy)
        _check(program, chosen, expected=None, noise=LAST_BITS, floor=3 * FLOOR[program.dtype], steps=2)


def anything(program: Runs, policy: str) -> None:
    """Compiles, is finite, and near what operands give that are off by as much as coarse formats make them."""
    # adaptive_rate, of metis-v1 alone, doubles what is small of a gradient, in each product: no bound for values
    floor = float("inf") if "metis-v1" in policy else 0.1
    _check(program, Policy.from_toml(policy), expected=None, noise=COARSE, floor=floor, times=2, steps=2)


ORACLES: dict[str, Callable[[Runs, str], None]] = {f.__name__: f for f in (high, nearest, splits, anything)}


def _check(
    program: Runs,
    policy: Policy,
    *,
    expected: Policy | None,
    noise: Any,
    floor: float,
    times: float = 4,
    steps: int = 1,
) -> None:
    torch.compiler.reset()
    model, inputs = program.build()
    backend = eager_backend(policy, pattern_matcher=program.patterns)
    compiled = torch.compile(model, backend=backend, dynamic=True if program.dynamic else None)
    for more in (0, 1) if program.dynamic else (0,):
        given = inputs(more)
        try:
            wanted = _emulated(model, given, Emulation(expected))
        except RuntimeError:
            if more == 0:
                raise
            return  # a program of one size alone
        moved = [_emulated(model, given, Emulation(expected, noise, seed)) for seed in range(3)]
        for step in range(steps):
            torch.manual_seed(step)
            found = train_step(model, compiled, given)
            _compare(found, wanted, moved, floor, times, f" in step {step}" if step else "")


def _compare(found: Results, wanted: Results, moved: list[Results], floor: float, times: float, where: str) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        # what is cut off from the loss has no gradient in eager PyTorch, and may have zeros from a compiled graph
        result, value = (results.get(name, torch.zeros_like((found | wanted)[name])) for results in (found, wanted))
        if (result.shape, result.dtype) != (value.shape, value.dtype):
            raise Mismatch(f"{name}{where}: {result.dtype} {[*result.shape]}, expected {value.dtype} {[*value.shape]}")
        if not result.isfinite().all() and value.isfinite().all():
            raise Mismatch(f"{name}{where} is not finite")
        allowed = floor + times * max(_error(m.get(name, value), value) for m in moved)
        if not _error(result, value) <= allowed:
            raise Mismatch(f"{name}{where}: relative error {_error(result, value):.2e}, allowed {allowed:.2e}")


def _error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-4 * expected.numel() ** 0.5))


class _Emulated:
    def __init__(self, model: Any, emulation: Emulation) -> None:
        self.model, self.emulation = model, emulation

    def __call__(self, *inputs: Tensor) -> Any:
        for x in inputs:
            self.emulation.declare(x, data=True, argument=x.dim() == 2 and x.requires_grad)
        return self.model(*inputs)


def _emulated(model: Any, inputs: Any, emulation: Emulation) -> Results:
    for p in model.parameters():
        emulation.declare(p, parameter=True)
    with emulation:
        return train_step(model, _Emulated(model, emulation), inputs, lambda g: emulation.declare(g, tangent=True))


@contextmanager
def without_quantization() -> Any:
    """Within: what is compiled has every split and transform, and nothing quantized."""

    def remove(context: PassContext) -> PassResult:
        remove_quantization(context.graph)
        return PassResult()

    at = pipeline.JOINT.index(pipeline.rewrite) + 1
    with mock.patch.object(pipeline, "JOINT", (*pipeline.JOINT[:at], remove)):
        yield
