"""The preset quartet2 multiplies what its recipe says: forward by four-over-six, backward transformed and corrected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import SUMMATION_ORDER, relative_error
from graphs import capture_graphs, eager_backend, sites_of
from torch import Tensor, nn

import metis_compile
from metis_compile.conditioning import prepare, product, signs_from
from metis_compile.numerics import QuantSpec, noise_shape, uniform_noise
from metis_compile.passes.joint.tails import SIGN_STREAM

EDEN = QuantSpec.make("nvfp4", rounding="eden")
FOUR_OVER_SIX = QuantSpec.make("nvfp4", select="mse")


def step(run: Any, linear: nn.Linear, x: Tensor, g: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradient of the weight."""
    x = x.clone().requires_grad_()
    y = run(x)
    found = torch.autograd.grad(y, [x, linear.weight], g)
    return [y.detach(), *found]


def by_hand(linear: nn.Linear, x: Tensor, g: Tensor, seed: Tensor, streams: dict[tuple[str, str], int]) -> list[Tensor]:
    def turned(t: Tensor, gemm: str, role: str, axis: int) -> Any:
        shape = list(t.shape)
        shape[axis] = -(-shape[axis] // 16) * 16
        noise = uniform_noise(seed, streams[gemm, role], noise_shape(shape, EDEN, axis))
        return prepare(t, axis=axis, spec=EDEN, signs=signs_from(seed, SIGN_STREAM), noise=noise)

    w = linear.weight.detach()
    return [
        product(prepare(x, axis=1, spec=FOUR_OVER_SIX), prepare(w, axis=1, spec=FOUR_OVER_SIX)),
        product(turned(g, "dgrad", "gradient", 1), turned(w, "dgrad", "weight", 0)),
        product(turned(g, "wgrad", "gradient", 0), turned(x, "wgrad", "activation", 0)),
    ]


@pytest.mark.parametrize("how", ["eager", "kernels", "traced"])
def test_a_linear_is_multiplied_as_by_hand(how: str) -> None:
    torch.compiler.reset()
    linear = nn.Linear(40, 72, bias=False)  # contracted lengths that do not fill their blocks
    x, g = torch.randn(37, 40), torch.randn(37, 72)
    backend: Any = eager_backend("quartet2", fallback_random=True) if how == "eager" else "metis"
    # fallback_random: the seed is then the first number that torch's own generator gives.
    options = {} if how == "eager" else {"policy": "quartet2", "cpu_kernels": how == "kernels", "fallback_random": True}
    with metis_compile.capture() as captured:
        run = torch.compile(linear, backend=backend, options=options)
        torch.manual_seed(7)
        actual = step(run, linear, x, g)
    backward: list[Any] = [(s.gemm, o) for s in sites_of(captured) if s.gemm != "fprop" for o in s.operands]
    streams = {(gemm, operand.role): operand.quantized.args[4] for gemm, operand in backward}
    assert len(set(streams.values())) == 4, "each tensor draws from a stream of its own"
    torch.manual_seed(7)
    seed = torch.randint(0, 2**63 - 1, [1])
    for got, want in zip(actual, by_hand(linear, x, g, seed, streams), strict=True):
        assert relative_error(got, want) < SUMMATION_ORDER
    for other in by_hand(linear, x, g, seed + 2**40, streams)[1:]:  # other signs, another draw
        assert min(relative_error(got, other) for got in actual if got.shape == other.shape) > 0.02


@pytest.mark.parametrize("fallback_random", [False, True])
def test_forward_and_backward_have_the_same_signs_and_each_step_new_ones(fallback_random: bool) -> None:
    """The activation of wgrad is transformed in forward, the gradient in backward: other signs give another product."""
    linear, x, g = nn.Linear(32, 32, bias=False), torch.randn(32, 32), torch.randn(32, 32)
    torch.compiler.reset()
    run = torch.compile(linear, backend=eager_backend("quartet2", fallback_random=fallback_random))
    first, second = step(run, linear, x, g), step(run, linear, x, g)
    for found in (first, second):
        for got, want in zip(found, step(linear, linear, x, g), strict=True):
            assert relative_error(got, want) < 0.25
    assert torch.equal(first[0], second[0])  # forward is to nearest
    assert not torch.equal(first[1], second[1])
    assert not torch.equal(first[2], second[2])


def test_every_product_is_rewritten_and_backward_keeps_packed_codes() -> None:
    captured = capture_graphs(
        nn.Linear(64, 32, bias=False), torch.randn(128, 64, requires_grad=True), policy="quartet2"
    )
    assert [site.reason for site in sites_of(captured)] == [None] * 3
    saved = [s for s in captured.graphs[0].saved if not s.is_parameter]
    assert torch.uint8 in {s.dtype for s in saved}
    assert sum(s.nbytes for s in saved) < 128 * 64 * 5 / 8  # 4.5 bits an element, a tensor scale, a seed
