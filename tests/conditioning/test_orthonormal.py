"""Orthonormalization of whatever comes: dependent, zero, tiny, huge, not finite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from metis_compile.conditioning.orthonormal import METHODS, orthonormalize, unit_columns

CASES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "random": lambda y: y,
    "graded": lambda y: y * torch.logspace(0, -30, y.shape[1]),
    "nearly_dependent": lambda y: y[:, :1] + 1e-6 * y,
    "rank_one": lambda y: torch.ones_like(y),
    "rank_two": lambda y: y[:, :2] @ torch.ones(2, y.shape[1]) + y[:, 1:2],
    "half_zero": lambda y: torch.where(torch.arange(y.shape[1]) % 2 == 0, y, 0.0),
    "zero": torch.zeros_like,
    "one_hot": lambda y: torch.nn.functional.one_hot(torch.zeros(len(y), dtype=torch.long), y.shape[1]).float(),
    "tiny": lambda y: y * 1e-30,
    "subnormal": lambda y: y * 1e-42,
    "huge": lambda y: y * 1e30,
    "largest": lambda y: y.clamp(-1, 1) * torch.finfo(torch.float32).max,
    "a_nan": lambda y: torch.where(y == y[0, 0], torch.nan, y),
    "an_inf": lambda y: torch.where(y == y[0, 0], torch.inf, y),
}


def off_orthonormal(q: torch.Tensor) -> float:
    q = q.double()
    return float((q.T @ q - torch.eye(q.shape[1])).abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "k"), [(512, 8), (1000, 48), (7, 7), (5, 1), (16, 3)])
@pytest.mark.parametrize("case", CASES)
def test_columns_are_orthonormal_and_span_what_was_given(case: str, n: int, k: int, method: str) -> None:
    if case == "rank_two" and k == 1:
        pytest.skip("two directions do not fit into one column")
    y = CASES[case](torch.randn(n, k, generator=torch.Generator().manual_seed(n)))
    q = orthonormalize(y, method)
    assert (q.shape, q.dtype) == ((n, k), torch.float32)
    assert off_orthonormal(q) < 1e-5
    unit = unit_columns(y)[0].double()
    outside = unit - q.double() @ (q.double().T @ unit)
    assert outside.norm(dim=0).max() < 1e-5


def test_the_methods_differ_where_directions_are_made_up() -> None:
    y = torch.zeros(64, 4)
    assert not torch.allclose(orthonormalize(y, "householder"), orthonormalize(y, "cholesky"), atol=0.1)
    assert torch.equal(orthonormalize(y), orthonormalize(y, "householder"))  # the CPU's own


def test_unit_columns_and_their_norms() -> None:
    y = torch.tensor([[3.0, 3e30, 3e-30, 0.0, torch.nan, 1e-44], [4.0, 4e30, 4e-30, 0.0, 1.0, 0.0]])
    unit, norms = unit_columns(y)
    assert torch.allclose(unit, torch.tensor([[0.6, 0.6, 0.6, 0, 0, 0], [0.8, 0.8, 0.8, 0, 0, 0]]))
    assert torch.allclose(norms, torch.tensor([[5.0, 5e30, 5e-30, 0, 0, 0]]))
