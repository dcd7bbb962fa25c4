"""Training gives the same bits whether it is monitored or not, and runs the same code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import MLP
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import metis_compile
from metis_compile.compat import inductor_sources


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.mlp, x, use_reentrant=False)
        return y


def train(start: nn.Module, policy: str, every: int | None) -> tuple[list[Any], list[str], list[Any]]:
    """Losses, parameters, state and random numbers of four steps of two micro-batches; the code; what is recorded."""
    torch.compiler.reset()
    model, sent = copy.deepcopy(start), []  # type: ignore[var-annotated]
    inner = model.mlp if isinstance(model, Checkpointed) else model
    monitor = None if every is None else metis_compile.monitor(model, every=every, to=sent.append, what_if=("mxfp8",))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    trace = []
    with inductor_sources() as sources:
        inner.compile(backend="metis", options={"policy": policy})
        for _ in range(4):
            for _ in range(2):
                loss = model(torch.randn(40, 32, requires_grad=True)).square().mean()
                loss.backward()
                trace.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
            trace += [p.detach().clone() for p in model.parameters()]
    state = metis_compile.state_dict(model)
    kept = [tensor for parts in state.values() for tensor in parts.values()]
    assert kept
    trace += kept
    trace.append(torch.get_rng_state())
    if monitor is not None:
        monitor.close()
    return trace, sources, sent


@pytest.mark.parametrize(
    ("model", "policy"),
    [(MLP, "best"), (Checkpointed, "metis"), (MLP, "ue5m3")],
    ids=["accumulation", "checkpoint", "held"],
)
def test_the_same_bits_and_the_same_code(model: Any, policy: str) -> None:
    """Dropout, stochastic rounding and kept bases among it; half of the steps are sampled."""
    torch.manual_seed(0)
    start = model(0.1) if model is MLP else model()
    plain, code, _ = train(start, policy, None)
    monitored, monitored_code, sent = train(start, policy, 2)
    assert len(plain) == len(monitored) > 20
    assert all(torch.equal(a, b) for a, b in zip(plain, monitored, strict=True))
    assert code == monitored_code
    assert len(code) >= 2
    assert [records[0]["step"] for records in sent] == [0, 2]
    assert {r["gemm"] for r in sent[-1]} == {"fprop", "dgrad", "wgrad"}
    products = [r for r in sent[-1] if r["operand"] == "product"]
    assert len(products) == 6
    assert all(0 < r["error"] < 0.3 for r in products)
