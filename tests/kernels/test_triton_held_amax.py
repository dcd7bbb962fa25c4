"""Compiled with the Triton kernels, an amax that is held is measured where it is time, of what lies in memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import value_families
from by_hand import assert_same
from graphs import eager_backend
from kept_bases import batch, same, state, step
from refusals import assert_refused
from torch import Tensor, nn
from triton_quantize import check_on_triton

from metis_compile import Policy
from metis_compile.numerics import QuantSpec, held_amax

pytest.importorskip("triton")

from metis_compile.kernels.quantize import amax as amaxes
from metis_compile.kernels.quantize.ops import HELD_TILES_AMAX


@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "nvfp4 1x16 eden", "nvfp4_ue5m3 16x16 stochastic round_up"])
def test_the_kernel_takes_one_that_was_held(triton_on_cpu: Any, text: str) -> None:
    """Byte for byte: what has grown since saturates as in plain torch, and so does what is not finite."""
    spec = QuantSpec.parse(text)
    for number, factor in enumerate((2.0**-10, 0.3, 0.9, 100.0)):
        x = torch.from_numpy(value_families.draw(["lognormal", "all_magnitudes"][number % 2], number, (37, 70)))
        amax = (x.abs().amax() * factor).clamp(max=torch.finfo(torch.float32).max)
        check_on_triton(x, spec, (1, 0), f"{factor}", amax=amax)
    for special in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(40, 65)
        x[7, 33] = special
        check_on_triton(x, spec, (1, 0), str(special), amax=torch.tensor(2.0))


def test_held_tiles_are_measured_as_the_numerics_say(triton_on_cpu: Any) -> None:
    kept = expected = torch.zeros(2)
    for i in range(5):
        x, mean = torch.randn(20, 48) + i, torch.randn(48)
        amax, kept = HELD_TILES_AMAX(x, mean, None, None, None, 1, kept, 3)
        wanted, expected = held_amax(x - mean, expected, 3)
        assert torch.equal(amax, wanted)
        assert torch.equal(kept, expected)
    given = [x, mean, None, None, None, 1, torch.zeros(3), 3]
    assert_refused(HELD_TILES_AMAX, given, ValueError, r"metis::held_tiles_amax: kept must have shape \[2\], got \[3\]")


def policy(split: str) -> Policy:
    return Policy.from_toml(
        f"""
        [recipe.r]
        weight = {{ format = "nvfp4", hold_amax = 2 }}
        activation = {{ format = "nvfp4", hold_amax = 2{split} }}
        gradient = {{ format = "nvfp4", hold_amax = 2 }}
        [[rule]]
        recipe = "r"
        """
    )


@pytest.mark.parametrize(
    ("split", "of_tiles"), [("", 0), (', split = "mean"', 1), (", split = { kind = 'spectral', rank = 2 }", 1)]
)
def test_compiled(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, split: str, of_tiles: int) -> None:
    """A residual is made in registers and stored for no amax: of that alone tiles are measured."""
    measured: list[str] = []
    aminmax, tiles_amax = torch.aminmax, amaxes.tiles_amax

    def whole(x: Tensor) -> Any:
        measured.append("whole")
        return aminmax(x)

    def tiles(*given: Any) -> Tensor:
        measured.append("tiles")
        return tiles_amax(*given)

    start, results = nn.Linear(32, 48), []
    for options in (
        {"backend": eager_backend(policy(split))},
        {"backend": "metis", "options": {"policy": policy(split), "max_autotune_gemm": False}},
    ):
        torch.compiler.reset()
        model = copy.deepcopy(start)
        run = torch.compile(model, **options)  # type: ignore[call-overload]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "aminmax", whole)
            patch.setattr(amaxes, "tiles_amax", tiles)
            taken = []
            for i in range(3):
                measured.clear()
                x = ((batch(i) + 1) * (i + 1)).requires_grad_()
                step(run, x, batch(i + 10, columns=48))
                taken.append({**state(run), "x": x.grad, "weight": model.weight.grad})
                if options["backend"] == "metis":
                    assert sorted(measured) == ["tiles"] * (of_tiles * (i != 1)) + ["whole"] * (
                        (3 - of_tiles) * (i != 1)
                    )
        results.append(taken)
    for i, (eager, made) in enumerate(zip(*results, strict=True)):
        amaxes_of = [{k: t for k, t in taken.items() if "amax" in k} for taken in (eager, made)]
        assert len(amaxes_of[0]) == 3
        assert same(*amaxes_of) or split, f"step {i}"
        for key in eager:
            assert_same(made[key], eager[key], 2e-2, f"step {i}: {key}")  # a last bit may move a code
