"""The transform: orthogonal, the same along both axes, and nothing is left of it in a product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metis_compile.conditioning import fixed_signs, hadamard, signs_from
from metis_compile.conditioning.hadamard import SIZES, matrix

SEED = torch.tensor([7])


@pytest.mark.parametrize("signs", [fixed_signs(), signs_from(SEED), torch.ones(16)], ids=["fixed", "fresh", "none"])
def test_the_matrix_is_orthogonal_and_holds_quarters(signs: torch.Tensor) -> None:
    h = matrix(signs)
    assert torch.equal(h @ h.T, torch.eye(16))
    assert torch.equal(h.abs(), torch.full((16, 16), 0.25))


@pytest.mark.parametrize("size", SIZES[1:])
def test_larger_ones_are_orthogonal_and_mix_as_many(size: int) -> None:
    for signs in (fixed_signs(size=size), signs_from(SEED, 0, size)):
        h = matrix(signs)
        torch.testing.assert_close(h @ h.T, torch.eye(size), rtol=0, atol=1e-6)
        assert torch.equal(h.abs(), torch.full((size, size), size**-0.5))
        a, b = torch.randn(5, 3 * size - 7), torch.randn(4, 3 * size - 7)
        turned = [hadamard(t, 1, signs) for t in (a, b)]
        assert turned[0].shape[1] == 3 * size
        torch.testing.assert_close(turned[0] @ turned[1].T, a @ b.T, rtol=0, atol=2e-4)


def test_the_matrix_is_sylvesters() -> None:
    h = torch.ones(1, 1)
    for _ in range(4):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    assert torch.equal(matrix(torch.ones(16)), h / 4)
    assert torch.equal(matrix(fixed_signs()), fixed_signs()[:, None] * h / 4)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 70), st.sampled_from([0, 1]), st.booleans())
def test_it_cancels_in_a_product(m: int, n: int, k: int, axis: int, fresh: bool) -> None:
    generator = torch.Generator().manual_seed(m * n + k)
    a, b = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    signs = signs_from(SEED, k) if fresh else fixed_signs()
    turned = [hadamard(t if axis else t.T, axis, signs) for t in (a, b)]
    padded = -(-k // 16) * 16
    assert [tuple(t.shape) for t in turned] == [((s, padded) if axis else (padded, s)) for s in (m, n)]
    product = turned[0] @ turned[1].T if axis else turned[0].T @ turned[1]
    assert torch.allclose(product, a @ b.T, atol=1e-4)


def test_a_short_last_block_is_filled_with_zeros() -> None:
    x = torch.randn(3, 20)
    filled = torch.cat([x, torch.zeros(3, 12)], 1)
    assert torch.equal(hadamard(x, 1, fixed_signs()), hadamard(filled, 1, fixed_signs()))
    assert torch.allclose(hadamard(x, 1, fixed_signs()).norm(dim=1), x.norm(dim=1))


def test_blocks_do_not_mix_and_an_outlier_spreads_over_its_own() -> None:
    x = torch.zeros(1, 48)
    x[0, 20] = 8.0
    turned = hadamard(x, 1, fixed_signs())
    assert torch.equal(turned[0, 16:32].abs(), torch.full((16,), 2.0))
    assert turned[0, :16].eq(0).all()
    assert turned[0, 32:].eq(0).all()


def test_signs_come_from_the_seed_and_the_stream() -> None:
    assert torch.equal(signs_from(SEED, 3), signs_from(SEED, 3))
    assert not torch.equal(signs_from(SEED, 3), signs_from(SEED, 4))
    assert not torch.equal(signs_from(SEED), signs_from(SEED + 1))
    many = torch.stack([signs_from(SEED, stream) for stream in range(400)])
    assert many.abs().eq(1).all()
    assert many.mean(0).abs().max() < 0.25


def test_leading_dimensions_and_narrow_dtypes() -> None:
    x = torch.randn(2, 3, 32).to(torch.bfloat16)
    turned = hadamard(x, -1, fixed_signs())
    assert turned.dtype == torch.float32
    assert torch.allclose(turned[1], hadamard(x[1].float(), 1, fixed_signs()))
    with pytest.raises(IndexError, match="axis must be between"):
        hadamard(x, 3, fixed_signs())
