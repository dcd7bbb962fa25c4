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
