"""What is drawn at random on several processes: each of them after the same `torch.manual_seed`, of the same batch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from parallel import (
    POLICIES,
    Block,
    backend_of,
    batches,
    compile_blocks,
    compile_whole,
    gradients,
    loss_of,
    make,
    mesh_2d,
    shard_blocks,
)
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import metis_compile
from metis_compile import Policy

# nothing but gradients is rounded, and these without bias
UNBIASED = Policy.from_toml(
    """
    [recipe.unbiased]
    weight = "high"
    activation = "high"
    gradient = { format = "nvfp4", rounding = "stochastic" }
    [[rule]]
    has_weight = true
    recipe = "unbiased"
    """,
    name="unbiased.toml",
)


POLICIES |= {"unbiased": UNBIASED, "metis-paper": "metis-paper"}


def drawn(model: nn.Module, run: Any = None, seed: int = 5) -> dict[str, Tensor]:
    """Gradients of a step in which random numbers begin with `seed`."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss_of((model if run is None else run)(batches(1)[0])).backward()
    return gradients(model)


def of_ddp(how: str) -> dict[str, Any]:
    """Local gradients of each rank; twice, and as one process has them that was told this rank."""
    model = make()
    if how == "blocks":
        compile_blocks(model, "stochastic")
    wrapped = DistributedDataParallel(model)
    if how == "whole":
        wrapped.compile(backend=backend_of("stochastic"))
    with wrapped.no_sync():
        found = [drawn(model, wrapped) for _ in range(2)]
    rank = metis_compile.data_parallel_rank()
    metis_compile.set_data_parallel_rank(dist.get_rank())
    plain = make()
    compile_whole(plain, "stochastic") if how == "whole" else compile_blocks(plain, "stochastic")
    alone = drawn(plain)
    metis_compile.set_data_parallel_rank(None)
    same = all(torch.equal(found[0][name], found[1][name]) for name in alone)
    as_stated = all(torch.equal(found[0][name], alone[name]) for name in alone)
    return {"rank": rank, "gradient": found[0]["layers.0.up.weight"], "reproducible": same, "as stated": as_stated}


def of_tensor_parallel_pairs(how: str, fsdp: bool) -> dict[str, Any]:
    """The first block is whole on every rank, the second spread over pairs of ranks."""
    mesh, model = mesh_2d(), make()
    shard_blocks(model, mesh["tp"], layers=[1])
    if fsdp:
        for layer in model.layers:
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
    (compile_whole if how == "whole" else compile_blocks)(model, "stochastic")
    ranks: list[int] = []
    if how == "blocks":  # once the first is compiled, and before the second is
        model.layers[0].register_forward_hook(lambda *_: ranks.append(metis_compile.data_parallel_rank()))
    found = drawn(model)
    return {"rank": [*ranks, metis_compile.data_parallel_rank()][0], "gradients": found}


def averaged() -> tuple[float, float]:
    """How far gradients are from exact ones: of this rank by itself, and averaged over ranks."""
    model = make()
    exact = drawn(model)["layers.1.down.weight"]
    wrapped = DistributedDataParallel(model)
    run = torch.compile(wrapped, backend=backend_of("unbiased"))
    errors = []
    for is_averaged in (False, True):
        with nullcontext() if is_averaged else wrapped.no_sync():
            errors.append(float((drawn(model, run)["layers.1.down.weight"] - exact).norm()))
    return errors[0], errors[1]


def resumed() -> bool:
    """Whether the second of two steps is the same where a run begins with it, given the state of torch's generator."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = DistributedDataParallel(model)
    wrapped.compile(backend=backend_of("metis-paper"))
    drawn(model, wrapped)
    optimizer.step()
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    kept = metis_compile.state_dict(model)
    state = torch.get_rng_state()

    def step(model: nn.Module, run: DistributedDataParallel) -> dict[str, Tensor]:
        model.zero_grad()
        torch.set_rng_state(state)
        with run.no_sync():  # DDP's buckets are others after its first step, and sums over ranks in another order
            loss_of(run(batches(1)[0])).backward()
        return gradients(model)

    whole = step(model, wrapped)
    torch.compiler.reset()
    torch.manual_seed(1234)
    again = make()
    again.load_state_dict(saved)
    wrapped = DistributedDataParallel(again)
    wrapped.compile(backend=backend_of("metis-paper"))
    metis_compile.load_state_dict(again, kept)
    found = step(again, wrapped)
    return all(torch.equal(found[name], whole[name]) for name in whole)


class Two(nn.Module):
    """Two blocks, each spread over another group of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x))


def of_overlapping_groups() -> str:
    mesh, model = mesh_2d(), Two()
    shard_blocks(model, mesh["tp"], layers=[0])
    shard_blocks(model, mesh["dp"], layers=[1])
    compile_whole(model, "stochastic")
    try:
        model(batches(1)[0])
    except Exception as error:
        return str(error)
    return ""
