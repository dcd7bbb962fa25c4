"""The benchmarks' workers on a GPU, at tiny sizes: that they run, and that what they count adds up."""

from typing import Any

import pytest
import torch
from torch import nn

from metis_compile.bench import memory, start, step
from metis_compile.train.trainer import bytes_saved_for_backward

pytestmark = pytest.mark.gpu
POLICIES = ["nvfp4", "averis", "metis"]
WIDTH, LAYERS, TOKENS = 512, 8, 4096


@pytest.fixture
def tiny(settings: Any) -> Any:
    return settings(width=128, tokens=256, device="cuda", dtype="bfloat16")


@pytest.mark.parametrize("policy", [*POLICIES, "fp8"])
def test_steps(tiny: Any, policy: str) -> None:
    found = step.measure(policy, tiny, lambda done: None, rounds=2)
    for side in ("plain", "candidate"):
        assert len(found[side]["gradients"]) == len(found[side]["whole"]) == 2
        assert all(0 < g < w for g, w in zip(found[side]["gradients"], found[side]["whole"], strict=True))
    assert 0 < found["candidate"]["saved_bytes"] < found["plain"]["saved_bytes"]


@pytest.mark.parametrize("policy", POLICIES)
def test_memory(tiny: Any, policy: str) -> None:
    plain, mine = (memory.measure(text, tiny, lambda done: None) for text in ("high", policy))
    assert 0 < mine["saved_bytes"] < plain["saved_bytes"]
    assert plain["input_bits"] == 16
    assert 4.5 <= mine["input_bits"] < 5
    assert min(plain["peak_bytes"], mine["peak_bytes"]) > 0


def test_a_start(tiny: Any) -> None:
    found = start.measure("nvfp4", tiny, lambda done: None)
    assert found["wall_seconds"] > 0


def deep() -> nn.Module:
    """Products alone: what is kept for backward is their inputs, and nothing else."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))).cuda().bfloat16()


def saved_and_peak(**backend: Any) -> tuple[int, int]:
    """Bytes that a forward keeps for its backward, and that a step takes above what was there."""
    torch.compiler.reset()
    model = deep()
    compiled = torch.compile(model, **backend)
    x = torch.randn(TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        compiled(x).sum().backward()

    for _ in range(2):  # compiles, autotunes
        run()
    saved = bytes_saved_for_backward(compiled, x)
    model.zero_grad(set_to_none=True)
    peak = memory.peak_bytes(run, "cuda")
    assert peak is not None
    return saved, peak


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_kept_and_the_peak(policy: str) -> None:
    """In bfloat16: codes and scales are 4.5 bits an element, and the thin factors of a split come on top."""
    plain_saved, plain_peak = saved_and_peak()
    saved, peak = saved_and_peak(backend="metis", options={"policy": policy})
    elements = LAYERS * TOKENS * WIDTH
    assert plain_saved == 2 * elements
    assert 4.5 / 8 * elements <= saved <= plain_saved / 3
    assert peak < plain_peak
