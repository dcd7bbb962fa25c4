"""Random numbers and rows of a sketch."""

from __future__ import annotations

import pytest
import torch

from metis_compile.conditioning.sketch import SKETCHES, sample_rows, sketch_matrix

SEED = torch.tensor([3])


@pytest.mark.parametrize("kind", SKETCHES)
def test_the_numbers_have_mean_0_variance_1_and_no_correlation(kind: str) -> None:
    z = sketch_matrix(kind, [20000, 4], SEED, 1, 2).double()
    assert z.isfinite().all()
    assert z.mean(0).abs().max() < 0.03
    assert (z.T @ z / len(z) - torch.eye(4)).abs().max() < 0.04
    fourth = float(z.pow(4).mean())
    assert abs(fourth - (3 if kind == "gaussian" else 1)) < 0.15
    assert torch.equal(z.float(), sketch_matrix(kind, [20000, 4], SEED, 1, 2))
    assert not torch.equal(z.float(), sketch_matrix(kind, [20000, 4], SEED, 2, 2))


@pytest.mark.parametrize(
    ("rows", "share", "least", "count"),
    [
        (1000, 0.05, 10, 50),
        (1001, 0.05, 10, 51),
        (1000, 0.05, 80, 80),
        (60, 0.05, 80, 60),
        (7, 1, 3, 7),
        (1, 0.1, 1, 1),
    ],
)
def test_one_row_from_each_stretch(rows: int, share: float, least: int, count: int) -> None:
    x = torch.arange(rows).float()[:, None].expand(rows, 3)
    taken = sample_rows(x, share, least, SEED, 4)[:, 0].long()
    assert len(taken) == count
    first = torch.arange(count) * rows // count
    assert ((taken >= first) & (taken < torch.cat([first[1:], torch.tensor([rows])]))).all()


def test_every_row_can_be_taken() -> None:
    x = torch.arange(40).float()[:, None]
    taken = torch.cat([sample_rows(x, 0.1, 1, SEED, stream) for stream in range(200)])
    assert len(taken.unique()) == 40
