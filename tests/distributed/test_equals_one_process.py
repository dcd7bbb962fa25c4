"""Training on several processes gives the gradients of one process with the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
from parallel import WAYS, difference_from_high
from processes import Raised, on_processes

RANKS = 4
EXACT = [(way, how, policy) for way in WAYS for how in ("whole", "blocks") for policy in ("high", "mxfp8")]
NVFP4 = [("ddp", "whole", "nvfp4"), ("tp", "whole", "nvfp4"), ("2d", "blocks", "nvfp4")]

# `high`: sums in another order, a few roundings of float32 deep. `mxfp8`: batches and shards are whole blocks, and a
# power of two more or less in a gradient changes scales alone, so that operands are quantized to the same values but
# for elements that lie within such a rounding of the middle between two: one of them is off by 1/8 of itself.
# `nvfp4`: its tensor scales are of what a rank holds, and block scales, in E4M3, round differently under each: an
# element moves by up to a step. Roundings to nearest of E2M1 are off by 0.1 of the norm, two of them, independent, in
# each of two operands, by 0.1 * sqrt(4).
BOUNDS = {"high": 2e-6, "mxfp8": 5e-3, "nvfp4": 0.2}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases = {"-".join(case): ("difference", *case) for case in EXACT + NVFP4}
    return on_processes(RANKS, "parallel", tmp_path_factory.mktemp("equals"), cases)


@pytest.mark.parametrize(("way", "how", "policy"), EXACT + NVFP4)
def test_gradients(results: list[dict[str, Any]], way: str, how: str, policy: str) -> None:
    for rank, found in enumerate(results):
        differences = found.get(f"{way}-{how}-{policy}", Raised("not run: a case before it raised"))
        assert not isinstance(differences, Raised), f"rank {rank}: {differences}"
        assert len(differences) == (0 if rank > 1 else 4 + 2 * rank) if way == "pipeline" else 10
        assert max(differences.values(), default=0) < BOUNDS[policy], f"rank {rank}: {differences}"


def test_the_bounds_tell_policies_from_high() -> None:
    """What is compared is quantized: without it every gradient of a matrix would be farther off."""
    for policy in ("mxfp8", "nvfp4"):
        found = difference_from_high(policy)
        assert min(found.values()) > 2 * BOUNDS["mxfp8"], found
