"""`metis::held_amax` is the plain torch of the numerics, and reads its tensor only where an amax is measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from refusals import assert_refused
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from metis_compile.numerics import held_amax
from metis_compile.ops.held_amax import HELD_AMAX
from metis_compile.ops.quantization import QUANTIZE


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(nan=-1.0), b.nan_to_num(nan=-1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("every", [1, 3])
def test_it_is_that_of_the_numerics(dtype: torch.dtype, every: int) -> None:
    specials = [None, math.nan, 1.0, math.inf, 0.0, -math.inf, -math.nan, None, None, 0.0, 2.0]
    kept = expected = torch.zeros(2)
    for step, special in enumerate(specials):
        x = torch.randn(9, 70, generator=torch.Generator().manual_seed(step)).to(dtype)
        if special == 0.0:
            x = torch.zeros(0, 3, dtype=dtype) if step > 5 else torch.zeros(9, 70, dtype=dtype)
        elif special is not None:
            x[step % 9, 7 * step % 70] = special
        found, kept = HELD_AMAX(x.t(), kept, every)
        wanted, expected = held_amax(x, expected, every)
        assert same(found, wanted), f"step {step}"
        assert same(kept, expected), f"step {step}"


def test_what_is_held_needs_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    aminmax = torch.aminmax

    def counted(x: Tensor) -> Any:
        passes.append(1)
        return aminmax(x)

    monkeypatch.setattr(torch, "aminmax", counted)
    kept, made = torch.zeros(2), []
    for _ in range(9):
        _, kept = HELD_AMAX(torch.randn(4, 4), kept, 4)
        made.append(len(passes))
    assert made == [1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_fake_tensors_are_laid_out_as_real_ones() -> None:
    x, kept = torch.randn(5, 7).bfloat16(), torch.zeros(2)
    real = HELD_AMAX(x, kept, 3)
    mode = FakeTensorMode()
    with mode:
        fake = HELD_AMAX(mode.from_tensor(x), mode.from_tensor(kept), 3)
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.ones(3).double()}, TypeError, "x must be float32, bfloat16 or float16, got float64"),
        ({"kept": torch.zeros(2).double()}, TypeError, "kept must be float32, got float64"),
        ({"kept": torch.zeros(3)}, ValueError, r"kept must have shape \[2\], got \[3\]"),
        ({"kept": torch.zeros(2, device="meta")}, ValueError, "kept must be on cpu, got meta"),
        ({"every": 0}, ValueError, "every must be at least 1 and at most 16777216, got 0"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"x": torch.ones(3), "kept": torch.zeros(2), "every": 3} | changed
    assert_refused(HELD_AMAX, list(given.values()), error, f"metis::held_amax: {message}")


@pytest.mark.parametrize(
    ("spec", "amax", "error", "message"),
    [
        ("mxfp8 1x32 nearest floor", torch.ones(()), ValueError, "amax must be None for .*, which has no scale of the"),
        ("nvfp4 1x16 nearest", torch.ones(()).half(), TypeError, "amax must be float32, got float16"),
        ("nvfp4 1x16 nearest", torch.ones(1), ValueError, r"amax must have shape \[\], got \[1\]"),
        ("fp8 tensor nearest", torch.ones((), device="meta"), ValueError, "amax must be on cpu like x, got meta"),
    ],
)
def test_what_quantize_refuses(spec: str, amax: Tensor, error: type[Exception], message: str) -> None:
    given = [torch.ones(32, 32), spec, 1, None, 0, False, amax]
    assert_refused(QUANTIZE, given, error, f"metis::quantize: {message}")
