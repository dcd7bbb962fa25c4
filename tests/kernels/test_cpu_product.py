"""Products of exact values, against float64: on bfloat16 instructions where there are any, and in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metis_compile.kernels.cpu import launch, ops

pytestmark = pytest.mark.usefixtures("each_gemm")


def exact(*shape: int) -> Tensor:
    """Values as E2M1 times E4M3 has them."""
    return (torch.randint(-6, 7, shape) * torch.randint(1, 16, shape) / 8).bfloat16()


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (64, 100, 33), (130, 64, 257)])
@pytest.mark.parametrize("left", ["as is", "transposed", "strided"])
@pytest.mark.parametrize("right", ["as is", "transposed", "strided"])
def test_values_and_strides(shape: tuple[int, int, int], left: str, right: str) -> None:
    m, k, n = shape
    a, b = laid_out(exact(m, k), left), laid_out(exact(k, n), right)
    decs = [torch.tensor(0.75), torch.tensor(2.0**-7)]
    out = torch.full((m, n), torch.nan)
    assert launch.product(a, b, *decs, out=out) is out
    # sums of few such products are exact in float32
    assert torch.equal(out.double(), a.double() @ b.double() * 0.75 * 2.0**-7)


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return x.T.contiguous().T
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0] if layout == "strided" else x


def test_batches() -> None:
    a, b = exact(3, 2, 8, 16), exact(3, 2, 10, 16).mT
    result = ops.CPU_PRODUCT(a, b, [], [])
    assert torch.equal(result.double(), a.double() @ b.double())


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_thin_products_are_added(scale: float) -> None:
    a, b = exact(48, 64), exact(64, 40)
    thin = [exact(48, 3).float(), exact(3, 40).float(), exact(48, 9).float(), exact(40, 9).float().T]
    result = ops.CPU_PRODUCT(a, b, [torch.tensor(scale)] * 2, thin)
    u, s, v, t = (factor.double() for factor in thin)
    assert torch.equal(result.double(), (a.double() @ b.double() * scale**2 + u @ s + v @ t).float().double())


def test_a_bias_is_added_once_along_with_the_thin_products() -> None:
    a, b, bias = exact(48, 64), exact(64, 40), exact(40).float()
    thin = [exact(48, 3), exact(3, 40).float(), exact(48, 9).float(), exact(40, 9).T]
    result = ops.CPU_PRODUCT(a, b, [torch.tensor(0.5)], thin, bias)
    u, s, v, t = (factor.double() for factor in thin)
    assert torch.equal(result.double(), a.double() @ b.double() * 0.5 + u @ s + v @ t + bias)


def test_scales_whose_product_is_no_normal_number() -> None:
    a, b = torch.full((4, 16), 1000.0).bfloat16(), torch.full((16, 4), 1000.0).bfloat16()
    decs = [torch.tensor(1e-30), torch.tensor(1e-12)]
    result = ops.CPU_PRODUCT(a, b, decs, [])
    assert torch.allclose(result, torch.full((4, 4), 1.6e7 * 1e-30 * 1e-12), rtol=1e-2)
    assert (result > 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    a, b = exact(4, 16), exact(16, 4)
    a[1, 2] = bad
    assert not ops.CPU_PRODUCT(a, b, [torch.tensor(1.0), torch.tensor(1.0)], [])[1].isfinite().any()
    assert not ops.CPU_PRODUCT(a.nan_to_num(0, 0, 0), b, [torch.tensor(bad), torch.tensor(1.0)], []).isfinite().any()


@pytest.mark.parametrize("dec", [1.0, 1e-30])
@pytest.mark.parametrize("shape", [(48,), (3, 48)])
def test_it_is_added_to_another_matrix(dec: float, shape: tuple[int, ...]) -> None:
    """Also where the tensor scales together are no float32."""
    a, b, added = exact(*shape, 64), exact(*shape[:-1], 64, 40), torch.randn(*shape, 40)
    before = added.clone()
    result = ops.CPU_PRODUCT(a, b, [torch.tensor(dec)] * 2, [], None, added, -0.5)
    error = result.double() - (added.double() - 0.5 * dec**2 * (a.double() @ b.double()))
    assert float(error.abs().max()) <= 2.0**-22 * float(result.abs().max())  # a rounding of each term of the sum
    assert torch.equal(added, before)


def test_all_that_is_added() -> None:
    a, b, bias, added = exact(48, 64), exact(64, 40), exact(40).float(), exact(48, 40).float()
    u, s = exact(48, 3), exact(3, 40)
    result = ops.CPU_PRODUCT(a, b, [], [u, s], bias, added, 2.0)
    u, s, bias, added = (t.double() for t in (u, s, bias, added))
    assert torch.equal(result.double(), 2 * (a.double() @ b.double()) + u @ s + bias + added)
