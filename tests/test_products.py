"""The tables of docs/products.md are those of the numbers that lie beside them."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GEMMS = {
    "fprop": ("activation", "weight"),
    "dgrad": ("gradient", "weight"),
    "wgrad": ("gradient", "activation"),
}


def numbers(folder: str, name: str) -> dict[str, Any]:
    return json.loads((RESULTS / folder / f"{name}.json").read_text())


def table(folder: str, name: str) -> list[list[str]]:
    """Cells, the headings first."""
    lines = (RESULTS / folder / f"{name}.md").read_text().splitlines()
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


def mean(values: list[float]) -> float:
    return prod(values) ** (1 / len(values))


@pytest.fixture(scope="module")
def gemm() -> dict[str, Any]:
    return numbers("gemm", "gemm")


def test_the_commit_is_known(gemm: dict[str, Any]) -> None:
    assert len(gemm["commit"]) == 12  # no longer, as that of a changed tree would be
    assert gemm["machine"]["date"]


def test_means_by_product(gemm: dict[str, Any]) -> None:
    headings, *rows = table("gemm", "products")
    assert [row[0] for row in rows] == list(gemm["errors"])
    reference = gemm["errors"]["nvfp4"]
    for row in rows:
        layers = gemm["errors"][row[0]]
        for product in GEMMS:
            found = mean([layer[product]["all"] for layer in layers.values()])
            over = mean([layer[product]["all"] / reference[name][product]["all"] for name, layer in layers.items()])
            at = headings.index(product)
            assert row[at : at + 2] == [f"{found:.4f}", f"{over:.2f}"]


def test_means_by_operand(gemm: dict[str, Any]) -> None:
    headings, *rows = table("gemm", "operands")
    assert len(rows) == len(gemm["errors"])
    for row in rows:
        layers = gemm["errors"][row[0]].values()
        for product, operands in GEMMS.items():
            for operand in operands:
                found = mean([layer[product][operand] for layer in layers])
                assert row[headings.index(f"{product}, {operand}")] == f"{found:.4f}"


def test_means_by_kind_of_layer(gemm: dict[str, Any]) -> None:
    headings, *rows = table("gemm", "layers")
    assert headings[1:] == list(gemm["errors"])
    for row in rows:
        kind, product = row[0].split(", ")
        for policy, cell in zip(headings[1:], row[1:], strict=True):
            layers = [found for name, found in gemm["errors"][policy].items() if name.endswith("." + kind)]
            assert cell == f"{mean([layer[product]['all'] for layer in layers]):.4f}"
    assert len(rows) == 6 * 3
