"""x + scale left right in one pass, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metis_compile.kernels.cpu import launch, ops


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return x.T.contiguous().T
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0] if layout == "strided" else x


def whole(*shape: int) -> Tensor:
    """Few small whole numbers: sums of their products are exact."""
    return torch.randint(-8, 9, shape).float()


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 64, 2), (5, 67, 3), (130, 257, 31), (9, 15, 8), (3, 128, 0)])
@pytest.mark.parametrize("left", ["as is", "transposed", "strided"])
@pytest.mark.parametrize("right", ["as is", "transposed", "strided"])
def test_values_and_strides(shape: tuple[int, int, int], left: str, right: str) -> None:
    rows, columns, k = shape
    x, u, s = whole(rows, columns), whole(rows, k), whole(k, columns)
    out = torch.full((rows, columns), torch.nan)
    assert launch.thin_sum(x, laid_out(u, left), laid_out(s, right), scale=-0.5, out=out) is out
    assert torch.equal(out, x - 0.5 * (u @ s))
    assert torch.equal(ops.CPU_THIN_SUM(x, u, s, -0.5), out)


def test_in_place() -> None:
    x, u, s = whole(33, 81), whole(33, 5), whole(5, 81)
    expected = x + u @ s
    assert launch.thin_sum(x, u, s, scale=1.0, out=x) is x
    assert torch.equal(x, expected)


def test_many_threads_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, u, s = torch.randn(301, 500), torch.randn(301, 7), torch.randn(7, 500)
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(ops.CPU_THIN_SUM(x, u, s, -1.0))
    assert torch.equal(*results)
    torch.testing.assert_close(results[0].double(), x.double() - u.double() @ s.double(), rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_in_its_row() -> None:
    x, u, s = whole(6, 40), whole(6, 2), whole(2, 40)
    x[3] = torch.nan
    assert torch.equal(ops.CPU_THIN_SUM(x, u, s, 1.0).isfinite().all(1), torch.arange(6) != 3)


@pytest.mark.parametrize("left", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("right", [torch.float32, torch.bfloat16])
def test_factors_in_bfloat16_and_a_bias(left: torch.dtype, right: torch.dtype) -> None:
    x, u, s, bias = whole(37, 150), whole(37, 5), whole(5, 150), whole(150)
    out = torch.full((37, 150), torch.nan)
    launch.thin_sum(x, u.to(left), s.T.contiguous().to(right).T, scale=2.0, bias=bias, out=out)
    assert torch.equal(out, x + 2 * (u @ s) + bias)
    launch.thin_sum(x, u.to(left), s.to(right), scale=2.0, bias=bias.repeat_interleave(2)[::2], out=out)
    assert torch.equal(out, x + 2 * (u @ s) + bias)
