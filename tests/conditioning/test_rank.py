"""Ranks: numbers, shares, and what keeps the extra work within 5%."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from metis_compile.conditioning import Spectral, resolve_rank


@pytest.mark.parametrize(
    ("rank", "rows", "columns", "other", "k"),
    [
        (8, 4096, 1024, None, 8),
        (8, 4096, 5, None, 5),  # no more than there are columns
        (8, 1, 64, None, 8),  # but more than there are rows
        (0.015, 4096, 1024, None, 15),
        (0.015, 4096, 16, None, 1),
        (0.5, 10, 64, None, 5),
        ("auto", 4096, 384, 384, 4),
        ("auto", 4096, 1024, 1024, 11),
        ("auto", 4096, 4096, 4096, 32),
        ("auto", 4096, 1024, 4096, 18),
        ("auto", 16, 16, 16, 1),
    ],
)
def test_rank(rank: int | float | str, rows: int, columns: int, other: int | None, k: int) -> None:
    assert resolve_rank(rank, rows, columns, other) == k


@pytest.mark.parametrize(("rows", "columns", "other"), [(4096, 384, 1536), (512, 1024, 1024), (65536, 8192, 28672)])
def test_auto_keeps_within_its_share_of_the_work(rows: int, columns: int, other: int) -> None:
    k = resolve_rank("auto", rows, columns, other)

    def share(k: int) -> float:
        # X (in) and G (out) split: X V twice over (to split, to step), their thin products, and orthonormalizing.
        return k * (2 * (1 / columns + 1 / other) + 4 / (3 * rows))

    assert share(k) <= 0.05
    assert k == 32 or share(k + 1) > 0.05


def test_auto_has_a_least() -> None:
    how = Spectral(rank="auto", rank_least=8)
    assert how.with_rank(4096, 384, 384).rank == 8
    assert how.with_rank(4096, 1024, 1024).rank == 11
    assert how.with_rank(4096, 5, 5).rank == 5
    assert how.fresh_basis(torch.randn(100, 64), torch.tensor([1])).shape == (8, 64)
    assert Spectral(rank=3, rank_least=8).with_rank(4096, 384, 384).rank == 3


def test_a_symbolic_size_counts_as_its_hint_and_is_not_guarded() -> None:
    env = ShapeEnv()
    dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.DYNAMIC])
    x = FakeTensorMode(shape_env=env).from_tensor(torch.empty(4096, 384), symbolic_context=dynamic)
    assert resolve_rank("auto", *x.shape) == 4
    assert resolve_rank(0.015, *x.shape) == 6
    assert not env.guards
    unknown = env.create_unbacked_symint()
    assert resolve_rank("auto", unknown, 384, 384) == 4
    assert resolve_rank("auto", unknown, unknown) == 32
    assert resolve_rank(0.5, unknown, unknown) == 32
    assert not env.guards


@pytest.mark.parametrize("rank", [0, -1, 1.0, 2.5, True, "all", None])
def test_ranks_that_are_none(rank: object) -> None:
    with pytest.raises(ValueError, match="rank must be"):
        Spectral(rank=rank)  # type: ignore[arg-type]
