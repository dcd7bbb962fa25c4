"""Training on several processes gives the gradients of one process with the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
from parallel import WAYS, difference_from_high
from processes import Raised, on_processes

HOW = (("whole", "high"), ("whole", "mxfp8"), ("blocks", "mxfp8"))
CASES = [(way, *how) for way in WAYS if way != "2d" for how in HOW]
CASES += [("ddp", "whole", "nvfp4"), ("tp", "whole", "nvfp4")]
OF_FOUR = [("2d", "whole", "mxfp8"), ("2d", "blocks", "nvfp4")]
LOCAL = ["averis", "best"]
SHARDS = ["averis"]

# `high`: sums in another order, a few roundings of float32 deep. `mxfp8`: batches and shards are whole blocks, and a
# power of two more or less in a gradient changes scales alone, so that operands are quantized to the same values but
# for elements that lie within such a rounding of the middle between two: one of them is off by 1/8 of itself.
# `nvfp4`: its tensor scales are of what a rank holds, and block scales, in E4M3, round differently under each: an
# element moves by up to a step. Roundings to nearest of E2M1 are off by 0.1 of the norm, two of them, independent, in
# each of two operands, by 0.1 * sqrt(4).
BOUNDS = {"high": 2e-6, "mxfp8": 5e-3, "nvfp4": 0.2}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases: dict[str, tuple[Any, ...]] = {"-".join(case): ("difference", *case) for case in CASES}
    cases |= {f"local {policy}": ("difference_from_local", policy) for policy in LOCAL}
    cases |= {f"shard {policy}": ("difference_from_shard", policy) for policy in SHARDS}
    cases |= {f"summary {way}": ("linears_in_the_summary", way) for way in ("fsdp1", "fsdp2")}
    return on_processes(2, "parallel", tmp_path_factory.mktemp("two"), cases)


@pytest.fixture(scope="module")
def results_of_four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases = {"-".join(case): ("difference", *case) for case in OF_FOUR}
    return on_processes(4, "parallel", tmp_path_factory.mktemp("four"), cases)


def of(results: list[dict[str, Any]], case: str) -> list[Any]:
    found = [result.get(case, Raised("not run: a case before it raised")) for result in results]
    for rank, differences in enumerate(found):
        assert not isinstance(differences, Raised), f"rank {rank}: {differences}"
    return found


def check(results: list[dict[str, Any]], way: str, how: str, policy: str) -> None:
    for rank, differences in enumerate(of(results, f"{way}-{how}-{policy}")):
        assert len(differences) == (4 + 2 * rank if way == "pipeline" else 10)
        assert max(differences.values()) < BOUNDS[policy], f"rank {rank}: {differences}"


@pytest.mark.parametrize(("way", "how", "policy"), CASES)
def test_gradients(results: list[dict[str, Any]], way: str, how: str, policy: str) -> None:
    check(results, way, how, policy)


@pytest.mark.parametrize(("way", "how", "policy"), OF_FOUR)
def test_gradients_of_four(results_of_four: list[dict[str, Any]], way: str, how: str, policy: str) -> None:
    check(results_of_four, way, how, policy)


@pytest.mark.parametrize("policy", LOCAL)
def test_what_is_averaged_is_what_each_rank_has_of_its_own_rows(results: list[dict[str, Any]], policy: str) -> None:
    """Tensor scales, means and bases are of the rows of a rank: to the rounding of a sum over ranks."""
    for rank, differences in enumerate(of(results, f"local {policy}")):
        assert max(differences.values()) < BOUNDS["high"], f"rank {rank}: {differences}"


@pytest.mark.parametrize("policy", SHARDS)
def test_a_shard_is_quantized_as_a_tensor_of_its_own(results: list[dict[str, Any]], policy: str) -> None:
    for rank, differences in enumerate(of(results, f"shard {policy}")):
        assert max(differences.values()) == 0, f"rank {rank}: {differences}"


@pytest.mark.parametrize("way", ["fsdp1", "fsdp2"])
def test_the_summary_is_of_the_model_whose_parameters_are_sharded(results: list[dict[str, Any]], way: str) -> None:
    assert of(results, f"summary {way}") == [(4, 4)] * 2


def test_the_bounds_tell_policies_from_high() -> None:
    """What is compared is quantized: without it every gradient of a matrix would be farther off."""
    for policy in ("mxfp8", "nvfp4"):
        found = difference_from_high(policy)
        assert min(found.values()) > 2 * BOUNDS["mxfp8"], found
