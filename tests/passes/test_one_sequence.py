"""One sequence, [1, tokens, features], is multiplied as the matrix that it is, also where blocks must be filled up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import SUMMATION_ORDER, relative_error
from graphs import capture_graphs, count, eager_backend, sites_of
from torch import Tensor, nn

import metis_compile
from metis_compile.ops.quantization import QUANTIZE

HADAMARD = ("nvidia", "averis-hadamard", "quartet2")


class Adapted(nn.Module):
    """A linear with a thin pair beside it: x is read by two linears, and one linear's output by another."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.down, self.up = nn.Linear(37, 32), nn.Linear(37, 8, bias=False), nn.Linear(8, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x) + self.up(self.down(x))  # type: ignore[no-any-return]


def two_linears() -> nn.Module:
    return nn.Sequential(nn.Linear(37, 51), nn.Linear(51, 37))


def step(run: Any, model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input and of all parameters, with the same draws each time."""
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def compiled(model: nn.Module, policy: str, **kwargs: Any) -> Any:
    torch.compiler.reset()
    # fallback_random: the seed is then a number of torch's own generator, the same in each graph.
    return torch.compile(model, backend=eager_backend(policy, fallback_random=True), **kwargs)


def assert_as_a_matrix(model: nn.Module, policy: str, x: Tensor, found: list[Tensor]) -> None:
    """The same products of the same codes as of x as a matrix, [tokens, features]."""
    expected = step(compiled(model, policy), model, x.reshape(-1, x.shape[-1]))
    for got, want in zip(found, expected, strict=True):
        assert relative_error(got.reshape(want.shape), want) < SUMMATION_ORDER
    for got, plain in zip(found, step(model, model, x), strict=True):
        assert relative_error(got, plain) < 0.5


@pytest.mark.parametrize(
    ("policy", "shape"),
    [
        *((policy, (1, 7)) for policy in HADAMARD),
        ("quartet2", (1, 16)),
        ("nvidia", (1, 1)),
        ("averis-hadamard", (1, 1, 23)),
    ],
)
def test_two_linears_in_a_row(policy: str, shape: tuple[int, ...]) -> None:
    model, x = two_linears(), torch.randn(*shape, 37)
    with metis_compile.capture() as captured:
        found = step(compiled(model, policy), model, x)
    assert {s.gemm for s in sites_of(captured) if s.reason is None} == {"fprop", "dgrad", "wgrad"}
    assert_as_a_matrix(model, policy, x, found)


@pytest.mark.parametrize("policy", HADAMARD)
def test_a_thin_pair_beside_a_linear(policy: str) -> None:
    model, x = Adapted(), torch.randn(1, 15, 37)
    assert_as_a_matrix(model, policy, x, step(compiled(model, policy), model, x))


def test_any_number_of_tokens() -> None:
    model, policy = two_linears(), "averis-hadamard"
    run = compiled(model, policy, dynamic=True)
    with metis_compile.capture() as captured:
        found = [(x, step(run, model, x)) for x in (torch.randn(1, tokens, 37) for tokens in (23, 41))]
    assert len(captured.graphs) == 1
    for x, results in found:
        assert_as_a_matrix(model, policy, x, results)


@pytest.mark.parametrize("policy", HADAMARD)
def test_linears_still_share_what_they_read(policy: str) -> None:
    """A sequence is quantized as often as a matrix."""
    graphs = [
        capture_graphs(Adapted(), torch.randn(*shape, requires_grad=True), policy=policy).graphs[0].joint_after
        for shape in ((1, 15, 37), (15, 37))
    ]
    assert count(graphs[0], QUANTIZE) == count(graphs[1], QUANTIZE) > 0


def test_inductor_compiles_it() -> None:
    torch.compiler.reset()
    model, x = two_linears(), torch.randn(1, 7, 37)
    options = {"policy": "averis-hadamard", "fallback_random": True}
    found = step(torch.compile(model, backend="metis", options=options), model, x)
    for got, want in zip(found, step(compiled(model, "averis-hadamard"), model, x), strict=True):
        assert relative_error(got, want) < SUMMATION_ORDER
