"""How many products of each graph were rewritten, counted without keeping a graph."""

from __future__ import annotations

import pytest
import torch
from graphs import eager_backend
from tiny import MLP, NEAREST_POLICY
from torch import fx
from torch._dynamo.exc import BackendCompilerFailed

from metis_compile import Policy
from metis_compile.passes.record import tally


def compile_and_run(policy: Policy | str) -> None:
    torch.compiler.reset()
    torch.compile(MLP(), backend=eager_backend(policy))(torch.randn(16, 32)).sum().backward()


def test_what_is_compiled_inside_the_block_is_counted() -> None:
    compile_and_run(NEAREST_POLICY)
    with tally() as outer:
        compile_and_run(NEAREST_POLICY)
        with tally() as inner:
            compile_and_run("high")
    compile_and_run(NEAREST_POLICY)
    assert [(each.policy, each.seen, each.rewritten, each.products) for each in outer] == [
        (NEAREST_POLICY, True, 5, 5),  # two of fprop and wgrad, and one of dgrad: the input needs no gradient
        (Policy.load("high"), True, 0, 5),
    ]
    assert inner == outer[1:]


def test_what_fails_is_not_counted() -> None:
    """As a compile that Dynamo gives up, to begin anew: it fails after the passes have run."""

    def fails(graph: fx.Graph) -> None:
        raise RuntimeError("not this one")

    run = torch.compile(MLP(), backend=eager_backend("fp8", joint_custom_post_pass=fails))
    with tally() as tallies, pytest.raises(BackendCompilerFailed, match="not this one"):
        run(torch.randn(16, 32))
    assert tallies == []
