"""``benchmarks/orthonormalization.py``: what it measures tells good from bad."""

import runpy
from pathlib import Path

import pytest
import torch

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "orthonormalization.py"))


def test_off_and_outside() -> None:
    q = torch.eye(4)[:, :2]
    assert SCRIPT["off"](q) == 0
    assert SCRIPT["off"](torch.tensor([[1.0, 0.5], [0.0, 1.0]])) == 0.5
    assert SCRIPT["outside"](q, 3 * q) == 0
    assert SCRIPT["outside"](q, torch.tensor([[2.0], [0.0], [2.0], [0.0]])) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("method", SCRIPT["METHODS"])
@pytest.mark.parametrize("name", SCRIPT["INPUTS"])
def test_methods_are_orthonormal(method: str, name: str) -> None:
    found = SCRIPT["quality"](SCRIPT["METHODS"][method], 96, 5)[name]
    assert found["off"] < 2e-6  # some ten roundings of float32
    assert found["outside"] < 5e-6  # the noise that Cholesky QR adds, and a little of what it costs


def test_a_method_that_fails_is_seen() -> None:
    found = SCRIPT["quality"](lambda y: y / y.norm(dim=0), 96, 5)
    assert found["random"]["off"] > 0.05
    assert found["rank 2"]["off"] > 0.5


def test_rows_and_their_table() -> None:
    rows = SCRIPT["measure"](64, 3, 5)
    assert [row["method"] for row in rows] == [*SCRIPT["METHODS"], "its noise alone"]
    assert rows[0]["ratio"] == [1, 1, 1]
    assert all(row["milliseconds"] > 0 for row in rows)
    lines = SCRIPT["table"](rows).splitlines()
    assert len(lines) == 2 + 4
    assert lines[-1].endswith("| - | - | - | - | - | - |")
    assert lines[2].startswith("| 64, 3 | householder | ")
