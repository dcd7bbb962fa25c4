"""A small model under each way to train it on several processes, and the same on one process with the joined batch.

What runs in each process of `processes.on_processes`; compiled by the backend with everything but Inductor's code
generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from graphs import eager_backend
from tiny import NEAREST_POLICY, STOCHASTIC_POLICY
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from metis_compile import set_data_parallel_rank, summary

POLICIES: dict[str, Any] = {name: name for name in ("high", "mxfp8", "averis", "best")}
POLICIES |= {"nvfp4": NEAREST_POLICY, "stochastic": STOCHASTIC_POLICY}
WIDTH, HIDDEN, ROWS = 64, 128, 32  # rows of a rank's batch, blocks of 32 along each axis of every shard


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def make() -> Model:
    torch.manual_seed(0)
    return Model()


def batches(count: int) -> Tensor:
    """[count, ROWS, WIDTH]"""
    return torch.randn(count, ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


@cache
def backend_of(policy: str) -> Any:
    """One for all models, which then share what is compiled."""
    return eager_backend(POLICIES[policy])


def compile_whole(model: nn.Module, policy: str) -> nn.Module:
    model.compile(backend=backend_of(policy))
    return model


def compile_blocks(model: nn.Module, policy: str) -> nn.Module:
    for layer in [module for module in model.modules() if isinstance(module, Block)]:
        layer.compile(backend=backend_of(policy))
    return model


COMPILE = {"whole": compile_whole, "blocks": compile_blocks}


def loss_of(output: Tensor) -> Tensor:
    """The mean over the batch, so that the mean over ranks of it is that of the joined batch."""
    return output.square().mul(torch.linspace(1, 2, WIDTH)).mean()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By the names of the plain model, whole."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        for wrapper in ("module.", "_orig_mod.", "_fsdp_wrapped_module."):
            name = name.replace(wrapper, "")
        found[name] = whole.detach().clone()
    return found


@cache
def step_of_one_process(policy: str, count: int) -> dict[str, Tensor]:
    """Gradients of the plain model for `count` batches, joined."""
    model = compile_whole(make(), policy)
    loss_of(model(batches(count).flatten(0, 1))).backward()
    torch.compiler.reset()
    return gradients(model)


@patch.object(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 9_000)  # several buckets, for each of which a graph is cut
def with_ddp(how: str, policy: str, batch: Tensor, rank: int, **options: Any) -> dict[str, Tensor]:
    model = make()
    if how == "blocks":
        compile_blocks(model, policy)
    wrapped = DistributedDataParallel(model, bucket_cap_mb=0.02, **options)
    run = torch.compile(wrapped, backend=backend_of(policy)) if how == "whole" else wrapped
    for step in range(2 if options.get("static_graph") else 1):  # the first step of a static graph only looks
        wrapped.zero_grad()
        loss_of(run(batch[rank])).backward()
        del step
    return gradients(model)


def with_static_graph(how: str, policy: str, batch: Tensor, rank: int) -> dict[str, Tensor]:
    return with_ddp(how, policy, batch, rank, static_graph=True)


def with_no_sync(how: str, policy: str, batch: Tensor, rank: int) -> dict[str, Tensor]:
    """Two halves of the batches, of which the first is not averaged by itself."""
    model = make()
    if how == "blocks":
        compile_blocks(model, policy)
    wrapped = DistributedDataParallel(model)
    run = torch.compile(wrapped, backend=backend_of(policy)) if how == "whole" else wrapped
    mine = batch.view(dist.get_world_size(), -1, ROWS, WIDTH)[rank]
    for i, part in enumerate(mine):
        with wrapped.no_sync() if i + 1 < len(mine) else nullcontext():
            (loss_of(run(part)) / len(mine)).backward()
    return gradients(model)


def with_fsdp1(how: str, policy: str, batch: Tensor, rank: int) -> dict[str, Tensor]:
    model = make()
    if how == "blocks":
        compile_blocks(model, policy)
    wrapped = FullyShardedDataParallel(
        model, auto_wrap_policy=ModuleWrapPolicy({Block}), use_orig_params=True, device_id=torch.device("cpu")
    )
    run = torch.compile(wrapped, backend=backend_of(policy)) if how == "whole" else wrapped
    loss_of(run(batch[rank])).backward()
    with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
        return gradients(wrapped)


def with_fsdp2(how: str, policy: str, batch: Tensor, rank: int) -> dict[str, Tensor]:
    model = make()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    COMPILE[how](model, policy)
    loss_of(model(batch[rank])).backward()
    return gradients(model)


def shard_blocks(model: Any, mesh: Any, layers: Sequence[int] = (0, 1)) -> None:
    for i in layers:
        parallelize_module(model.layers[i], mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def with_tp(how: str, policy: str, batch: Tensor, rank: int) -> dict[str, Tensor]:
    """All ranks compute one batch together."""
    model = make()
    shard_blocks(model, init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",)))
    COMPILE[how](model, policy)
    loss_of(model(batch.flatten(0, 1))).backward()
    return gradients(model)


def mesh_2d() -> Any:
    return init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))


def with_2d(how: str, policy: str, batch: Tensor, rank: int) -> dict[str, Tensor]:
    """Tensor parallelism in pairs of ranks, and FSDP2 over the pairs, each of which has its batch."""
    mesh, model = mesh_2d(), make()
    shard_blocks(model, mesh["tp"])
    for layer in model.layers:
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    COMPILE[how](model, policy)
    parts = batch.view(mesh["dp"].size(), -1, WIDTH)
    loss_of(model(parts[mesh["dp"].get_local_rank()])).backward()
    return gradients(model)


def with_pipeline(how: str, policy: str, batch: Tensor, rank: int) -> dict[str, Tensor]:
    """Two stages of one block each, on the first two ranks; a microbatch for each rank's batch."""
    group = dist.new_group([0, 1])
    if rank > 1:
        return {}
    model = make()
    kept = model.layers[rank]
    if rank == 0:
        model.norm = nn.Identity()  # type: ignore[assignment]
    model.layers = nn.ModuleList([kept])
    COMPILE[how](model, policy)
    stage = PipelineStage(model, rank, 2, torch.device("cpu"), group=group)
    schedule = ScheduleGPipe(stage, len(batch), loss_fn=lambda output, target: loss_of(output))
    joined = batch.flatten(0, 1)
    schedule.step(*([joined] if rank == 0 else []), **({} if rank == 0 else {"target": joined}))
    moved = {"layers.0": f"layers.{rank}"}
    return {name.replace("layers.0", moved["layers.0"]): value for name, value in gradients(model).items()}


WAYS: dict[str, Callable[[str, str, Tensor, int], dict[str, Tensor]]] = {
    "ddp": with_ddp,
    "ddp-static-graph": with_static_graph,
    "ddp-no-sync": with_no_sync,
    "fsdp1": with_fsdp1,
    "fsdp2": with_fsdp2,
    "tp": with_tp,
    "2d": with_2d,
    "pipeline": with_pipeline,
}


def difference(way: str, how: str, policy: str) -> dict[str, float]:
    """Of each parameter's gradient, to that of one process with the joined batch, relative to its norm."""
    rank, count = dist.get_rank(), dist.get_world_size()
    count *= 2 if way == "ddp-no-sync" else 1
    expected = step_of_one_process(policy, count)
    found = WAYS[way](how, policy, batches(count), rank)
    return {name: float((found[name] - expected[name]).norm() / expected[name].norm()) for name in found}


def difference_from_local(policy: str) -> dict[str, float]:
    """Of DDP's gradients to the mean of those that one process has of each rank's batch, told which rank it is."""
    rank, count = dist.get_rank(), dist.get_world_size()
    expected: dict[str, Tensor] = {}
    for each in range(count):
        set_data_parallel_rank(each)
        model = make()
        compile_whole(model, policy)
        loss_of(model(batches(count)[each])).backward()
        for name, gradient in gradients(model).items():
            expected[name] = expected.get(name, 0) + gradient / count
    set_data_parallel_rank(None)
    model = make()
    wrapped = DistributedDataParallel(model)  # one bucket: each graph draws a seed
    wrapped.compile(backend=backend_of(policy))
    loss_of(wrapped(batches(count)[rank])).backward()
    found = gradients(model)
    return {name: float((found[name] - value).norm() / value.norm()) for name, value in expected.items()}


def difference_from_shard(policy: str) -> dict[str, float]:
    """Of what a rank computes with its rows of a weight, to what one process does that has these alone."""
    rank, count = dist.get_rank(), dist.get_world_size()
    block, x = make().layers[0], batches(1)[0]
    mine = nn.Linear(WIDTH, HIDDEN // count)
    mine.load_state_dict({name: p.chunk(count)[rank] for name, p in block.up.state_dict().items()})
    alone, shared = Product(mine), Product(block.up)
    parallelize_module(shared, init_device_mesh("cpu", (count,)), {"product": ColwiseParallel()})
    outputs = []
    for model, stated in ((alone, 0), (shared, None)):
        torch.compiler.reset()
        torch.manual_seed(0)
        set_data_parallel_rank(stated)
        compile_whole(model, policy)
        outputs.append(model(x))
        outputs[-1].sum().backward()
    gradient = shared.product.weight.grad
    assert isinstance(gradient, DTensor)
    assert mine.weight.grad is not None
    found = {"output": (outputs[1], outputs[0]), "gradient": (gradient.to_local(), mine.weight.grad)}
    return {name: float((a - b).norm()) for name, (a, b) in found.items()}


class Product(nn.Module):
    def __init__(self, product: nn.Linear) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x) * 2


def difference_from_high(policy: str) -> dict[str, float]:
    """Of each matrix's gradient on one process, relative to its norm."""
    expected, found = step_of_one_process("high", 4), step_of_one_process(policy, 4)
    return {
        name: float((found[name] - value).norm() / value.norm()) for name, value in expected.items() if value.dim() > 1
    }


def linears_in_the_summary(way: str) -> tuple[int, int]:
    """How many linears `metis_compile.summary` says that the model has, and how many it says are quantized."""
    model, mesh = make(), init_device_mesh("cpu", (dist.get_world_size(),))
    if way == "fsdp2":
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    run: nn.Module = model
    if way == "fsdp1":
        wrap = ModuleWrapPolicy({Block})
        run = FullyShardedDataParallel(
            model, auto_wrap_policy=wrap, use_orig_params=True, device_id=torch.device("cpu")
        )
    run.compile(backend=backend_of("mxfp8"))
    loss_of(run(batches(1)[0])).backward()
    found = summary(model)
    return found.linears, found.quantized_linears
