import pytest
import torch

from metis_compile.mlir.orthonormal import householder


@pytest.mark.parametrize(("n", "k"), [(32, 1), (48, 8), (5, 5), (3, 2)])
def test_q_is_that_of_torch(n: int, k: int) -> None:
    torch.manual_seed(0)
    y = torch.randn(n, k)
    # the same reflections with sums in another order: some units in the last place of 1, growing with the columns
    torch.testing.assert_close(householder(y), torch.linalg.qr(y)[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("columns", ["zero", "equal", "identity", "negative", "one of noise"])
def test_columns_are_orthonormal_whatever_it_is_given(columns: str, scale: float) -> None:
    torch.manual_seed(0)
    y = {
        "zero": torch.zeros(48, 8),
        "equal": torch.ones(48, 8),
        "identity": torch.eye(48)[:, :8],
        "negative": -torch.eye(48)[:, :8],
        "one of noise": torch.cat([torch.ones(48, 7), torch.randn(48, 1)], dim=1),
    }[columns] * scale
    q = householder(y)
    torch.testing.assert_close(q.mT @ q, torch.eye(8), rtol=0, atol=2e-6)


@pytest.mark.parametrize("columns", ["dependent", "random"])
@pytest.mark.parametrize("exponent", [-100, 100])
def test_scaling_changes_no_bit(columns: str, exponent: int) -> None:
    """What is left of dependent columns is never so small that its bits are lost."""
    torch.manual_seed(0)
    y = torch.randn(48, 8)
    if columns == "dependent":
        y[:, :7] = y[:, :1]
    assert torch.equal(householder(y * 2.0**exponent), householder(y))


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_flushed_subnormals_change_no_bit(scale: float) -> None:
    y = torch.randn(48, 8) * scale
    y[:, 3:6] = y[:, 2:3]
    y[5:, 0] *= 1e-25  # whose squares are subnormal
    wanted = householder(y)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU flushes no subnormals")
    try:
        assert torch.equal(householder(y), wanted)
    finally:
        torch.set_flush_denormal(False)
