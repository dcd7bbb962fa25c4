"""Bases that are kept across steps, where a region of the model is checkpointed: run again in backward."""

from __future__ import annotations

import copy
import gc
from itertools import pairwise

import pytest
import torch
from graphs import eager_backend
from kept_bases import POLICY, batch, compiled, policy, same, state, step
from tiny import MLP, Twice
from torch import nn
from torch.utils.checkpoint import checkpoint


@pytest.mark.parametrize("reentrant", [False, True], ids=["nonreentrant", "reentrant"])
def test_checkpointing_inside_the_model_changes_nothing(reentrant: bool) -> None:
    results = []
    start = Twice()
    for chosen in (None, reentrant):
        torch.compiler.reset()
        model = Twice(chosen)
        model.load_state_dict(start.state_dict())
        run = compiled(model, fullgraph=True)
        for i in range(3):
            step(run, batch(i))
        results.append({**state(run), **{n: p.grad for n, p in model.named_parameters()}})
    assert same(*results)


KEPT = {
    "tracked": ("rank = 3", "rank = 2"),
    "refreshed": ("rank = 3, refresh = 3, track = false", "rank = 2, refresh = 2, track = false"),
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("anew", [False, True], ids=["inputs kept", "inputs computed anew"])
@pytest.mark.parametrize("forwards", [1, 2])
def test_a_compiled_block_that_is_checkpointed_takes_the_same_steps(kept: str, anew: bool, forwards: int) -> None:
    """It runs again from the bases that it had, so that gradients are those of the forward that made the loss.

    Of two forwards in one step, the last runs again first where inputs are computed anew, or else the first.
    """
    results = []
    start = MLP()
    for checkpointed in (False, True):
        torch.compiler.reset()
        model = copy.deepcopy(start)
        run = compiled(model, policy(*KEPT[kept], "stochastic"))
        called = (lambda x, run=run: run(2 * x)) if anew else run
        taken = []
        for i in range(4):
            torch.manual_seed(i)
            losses = []
            for seed in range(i, i + 10 * forwards, 10):
                x = batch(seed).requires_grad_()
                y = checkpoint(called, x, use_reentrant=False) if checkpointed else called(x)
                losses.append(y.square().sum())
            for loss in [sum(losses)] if anew else losses:
                loss.backward()
            taken.append({**state(run), **{n: p.grad.clone() for n, p in model.named_parameters()}})
        results.append(taken)
    assert all(same(a, b) for a, b in zip(*results, strict=True))
    first, second = ({k: v for k, v in results[1][i].items() if "up.weight.activation" in k} for i in (0, 1))
    assert not same(first, second)


def test_what_a_checkpoint_may_need_is_let_go() -> None:
    from metis_compile.state.runtime import _Call

    def held() -> int:
        return sum(type(o) is _Call for o in gc.get_objects())

    gc.collect()  # graphs of other tests
    assert held() == 0
    run = compiled(MLP())
    for i in range(3):
        y = checkpoint(run, batch(i).requires_grad_(), use_reentrant=False)
        assert held() == 1
        if i:
            y.square().sum().backward()
        del y
        assert held() == 0
    step(run, batch())
    assert held() == 0


@pytest.mark.parametrize("which", [{0, 1, 2}, {1}], ids=str)
def test_blocks_with_reentrant_checkpoints_move_on(which: set[int]) -> None:
    """One compiled graph serves all: some first run with gradients outside of a backward, some inside."""
    blocks = nn.ModuleList(MLP() for _ in range(3))
    for block in blocks:
        block.compile(backend=eager_backend(POLICY))
    seen = []
    for i in range(4):
        x = batch(i).requires_grad_()
        for k, block in enumerate(blocks):
            x = x + (checkpoint(block, x, use_reentrant=True) if k in which else block(x))
        x.square().sum().backward()
        seen.append(state(blocks))
    for before, after in pairwise(seen):
        assert len(before) == 3 * 4
        assert not any(torch.equal(before[key], after[key]) for key in before)
