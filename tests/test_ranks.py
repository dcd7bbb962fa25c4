"""The data-parallel rank that a process states, and what it draws for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from graphs import capture_graphs, count, eager_backend
from tiny import STOCHASTIC_POLICY
from torch import Tensor, nn

import metis_compile
from metis_compile import PolicyWarning
from metis_compile.ops.rank import OF_RANK, seed_of_rank


@pytest.fixture(autouse=True)
def _nothing_stated() -> Iterator[None]:
    yield
    torch.compiler.reset()
    metis_compile.set_data_parallel_rank(None)


def gradient(rank: int | None, backend: Any = None) -> Tensor:
    torch.compiler.reset()
    metis_compile.set_data_parallel_rank(rank)
    torch.manual_seed(0)
    model, x = nn.Linear(32, 32), torch.randn(32, 32)
    torch.compile(model, backend=backend or eager_backend(STOCHASTIC_POLICY))(x).square().sum().backward()
    assert model.weight.grad is not None
    return model.weight.grad


def test_one_process_draws_what_rank_0_draws() -> None:
    alone = gradient(None)
    assert metis_compile.data_parallel_rank() == 0
    torch.testing.assert_close(gradient(0), alone, rtol=0, atol=0)


def test_each_rank_draws_the_same_each_time_and_no_other_does() -> None:
    one = gradient(1)
    assert metis_compile.data_parallel_rank() == 1
    assert not torch.equal(gradient(0), one)
    assert not torch.equal(gradient(2), one)
    torch.testing.assert_close(gradient(1), one, rtol=0, atol=0)


def test_one_compiled_graph_serves_all_ranks() -> None:
    """In a process, and in Inductor's cache: the rank is read when the graph runs."""
    from torch._dynamo.utils import counters

    def backend(gm: Any, inputs: Any, **_: Any) -> Any:
        return metis_compile.backend.metis(gm, inputs, options={"policy": STOCHASTIC_POLICY})

    first = gradient(1, backend)
    counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PolicyWarning)  # what no pass saw is not said to match nothing
        second = gradient(2, backend)
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    assert counters["inductor"]["fxgraph_cache_hit"] == 2
    assert not torch.equal(first, second)
    torch.testing.assert_close(gradient(1, backend), first, rtol=0, atol=0)


def test_graphs_of_one_process_do_not_ask_for_the_rank() -> None:
    x = torch.randn(32, 32, requires_grad=True)
    joint = capture_graphs(nn.Linear(32, 32), x, policy=STOCHASTIC_POLICY).graphs[0].joint_after
    assert count(joint, OF_RANK) == 0
    metis_compile.set_data_parallel_rank(0)
    joint = capture_graphs(nn.Linear(32, 32), x, policy=STOCHASTIC_POLICY).graphs[0].joint_after
    assert count(joint, OF_RANK) == 1


@pytest.mark.parametrize("rank", [-1, 1.0, True, "1"])
def test_what_is_no_rank(rank: Any) -> None:
    with pytest.raises(ValueError, match=f"must be an integer of 0 or more, or None, got {rank!r}"):
        metis_compile.set_data_parallel_rank(rank)


def test_a_rank_that_comes_too_late() -> None:
    gradient(None)
    with pytest.raises(RuntimeError, match=r"set_data_parallel_rank\(1\) comes after a model was compiled"):
        metis_compile.set_data_parallel_rank(1)
    torch.compiler.reset()
    metis_compile.set_data_parallel_rank(1)


def test_no_stream_of_one_rank_is_one_of_another() -> None:
    """In steps of streams, of which there are 2^31, ranks are far from each other."""
    step_of_streams = 0x9E3779B97F4A7C15
    zero = torch.zeros(1, dtype=torch.int64)
    seeds = [int(seed_of_rank(zero, rank)) for rank in range(1, 4096)]
    assert int(seed_of_rank(zero, 0)) == 0
    streams = [seed * pow(step_of_streams, -1, 2**64) % 2**64 for seed in seeds]
    assert min(min(stream, 2**64 - stream) for stream in streams) > 2**32


def test_a_seed_is_int64() -> None:
    with pytest.raises(TypeError, match=r"metis::of_rank: seed must be int64, got float32"):
        OF_RANK(torch.zeros(1))


def test_an_export_is_given_the_seed_of_its_rank() -> None:
    pytest.importorskip("torch_mlir", reason="the export is made by torch-mlir, whose packages are for Linux")
    texts = []
    for rank in (None, 1):
        torch.compiler.reset()
        metis_compile.set_data_parallel_rank(rank)
        model = nn.Linear(32, 32)
        exported = metis_compile.export_mlir(model, torch.randn(32, 32), policy=STOCHASTIC_POLICY)
        texts.append([program.mlir for program in exported.programs])
    assert texts[0] == texts[1]
