"""The error of a product from some of its elements."""

from __future__ import annotations

import pytest
import torch

from metis_compile.statistics import left_block, product_error, result_block, right_block


@pytest.mark.parametrize("shape", [(20, 16, 30), (100, 48, 33), (32, 16, 32)])
def test_a_matrix_product(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    torch.manual_seed(0)
    a, b, noise = torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)
    rows = list(range(0, m, -(-m // 32))) if m > 32 else list(range(m))
    columns = list(range(0, n, -(-n // 32))) if n > 32 else list(range(n))
    y = a @ b
    wanted = noise[rows][:, columns].norm() / y[rows][:, columns].norm()
    found = product_error(result_block(y + noise), left_block(a), right_block(b))
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)


def test_what_is_added_is_no_error() -> None:
    torch.manual_seed(0)
    a, b, bias = torch.randn(40, 16), torch.randn(16, 40), torch.randn(40)
    y = torch.addmm(bias, a, b, beta=0.5, alpha=2.0)
    added = result_block(bias.expand(40, 40))
    found = product_error(result_block(y), left_block(a), right_block(b), added, alpha=2.0, beta=0.5)
    assert float(found) < 1e-6
    assert float(product_error(result_block(y), left_block(a), right_block(b), added)) > 0.1


def test_a_batch_is_looked_at_in_part() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(9, 40, 16), torch.randn(9, 16, 40)
    y = a @ b
    y[3] *= 2  # every third is looked at
    found = product_error(result_block(y), left_block(a), right_block(b))
    exact = (a @ b)[[0, 3, 6]][:, ::2, ::2]
    assert float(found) == pytest.approx(float(exact[1].norm() / exact.norm()), rel=1e-4)


def test_nothing_is_no_error_and_something_of_nothing_is_infinite() -> None:
    a, b = torch.zeros(4, 4), torch.ones(4, 4)
    assert float(product_error(torch.zeros(4, 4), a, b)) == 0
    assert float(product_error(torch.ones(4, 4), a, b)) == float("inf")
