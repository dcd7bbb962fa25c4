"""Random bits differ by data-parallel rank, and are equal within a tensor-parallel group."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from processes import Raised, on_processes

RANKS = 4
CASES: dict[str, tuple[Any, ...]] = {
    "ddp whole": ("of_ddp", "whole"),
    "ddp blocks": ("of_ddp", "blocks"),
    "tp whole": ("of_tensor_parallel_pairs", "whole", False),
    "tp blocks": ("of_tensor_parallel_pairs", "blocks", False),
    "2d blocks": ("of_tensor_parallel_pairs", "blocks", True),
    "averaged": ("averaged",),
    "resumed": ("resumed",),
    "overlapping groups": ("of_overlapping_groups",),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_processes(RANKS, "parallel_noise", tmp_path_factory.mktemp("random"), CASES)


def of(results: list[dict[str, Any]], case: str) -> list[Any]:
    found = [result.get(case, Raised("not run: a case before it raised")) for result in results]
    for rank, result in enumerate(found):
        assert not isinstance(result, Raised), f"rank {rank}: {result}"
    return found


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_ranks_of_data_parallelism_draw_bits_of_their_own(results: list[dict[str, Any]], how: str) -> None:
    found = of(results, f"ddp {how}")
    assert [result["rank"] for result in found] == [0, 1, 2, 3]
    assert all(result["reproducible"] for result in found)
    assert all(result["as stated"] for result in found), "one process that is told the rank draws the same"
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(one["gradient"], other["gradient"])


@pytest.mark.parametrize(("kind", "how"), [("tp", "whole"), ("tp", "blocks"), ("2d", "blocks")])
def test_ranks_of_a_tensor_parallel_group_draw_the_same(results: list[dict[str, Any]], kind: str, how: str) -> None:
    """In the first step already, and in the graph of a block that is whole on each of them."""
    found = of(results, f"{kind} {how}")
    assert [result["rank"] for result in found] == [0, 0, 2, 2]
    for one, other in [(0, 1), (2, 3)]:
        for name, gradient in found[one]["gradients"].items():
            torch.testing.assert_close(gradient, found[other]["gradients"][name], rtol=0, atol=0, msg=name)


def test_groups_of_tensor_parallelism_draw_different_bits(results: list[dict[str, Any]]) -> None:
    for how in ("whole", "blocks"):
        found = of(results, f"tp {how}")
        for name in ("layers.0.up.weight", "layers.1.up.weight"):
            assert not torch.equal(found[0]["gradients"][name], found[2]["gradients"][name])


def test_noise_averages_out_over_ranks(results: list[dict[str, Any]]) -> None:
    """By the square root of their number; 8,192 elements tell that to a few percent."""
    found = of(results, "averaged")
    alone = (sum(error**2 for error, _ in found) / RANKS) ** 0.5
    assert found[0][1] / alone == pytest.approx(RANKS**-0.5, rel=0.1)


def test_a_resumed_run_draws_what_it_would_have(results: list[dict[str, Any]]) -> None:
    assert of(results, "resumed") == [True] * RANKS


def test_overlapping_groups_are_an_error_that_says_what_to_do(results: list[dict[str, Any]]) -> None:
    for rank, message in enumerate(of(results, "overlapping groups")):
        assert f"rank {rank} computes with ranks" in message
        assert "call metis_compile.set_data_parallel_rank(rank)" in message
