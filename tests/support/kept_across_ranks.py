"""One process of a test: what is kept under what shards and replicates a model, and in its distributed checkpoints.

python kept_across_ranks.py FOLDER RANK WORLD (train | load)
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from kept_bases import POLICY, batch, compiled, eager_backend, same, state, step
from tiny import MLP
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import metis_compile
from metis_compile import KeptState

SITES = [f"{i}.{name}.weight" for i in range(2) for name in ("up", "down")]


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(MLP(), MLP())


def blocks(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, MLP):
            module.compile(backend=eager_backend(POLICY))
    return model


def fsdp1(model: nn.Module) -> nn.Module:
    wrap = ModuleWrapPolicy({MLP})
    return FullyShardedDataParallel(model, auto_wrap_policy=wrap, use_orig_params=True, device_id=torch.device("cpu"))


def fsdp2(model: nn.Sequential) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def shared_out(model: nn.Sequential) -> nn.Sequential:
    """Under tensor parallelism over all processes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


WRAPPED = {
    "ddp": lambda: compiled(DistributedDataParallel(make())),
    "fsdp1": lambda: compiled(fsdp1(make())),
    "fsdp2": lambda: compiled(fsdp2(make())),
    "fsdp2 blocks": lambda: blocks(fsdp2(make())),
}


def steps(run: Any, rank: int, numbers: range) -> None:
    for i in numbers:
        step(run, batch(10 * i + rank), batch(10 * i + rank + 100))


def train(folder: Path, rank: int) -> None:
    kept: dict[str, Any] = {}
    for name, wrap in WRAPPED.items():
        torch.compiler.reset()
        model = wrap()
        steps(model, rank, range(2))
        kept[name] = metis_compile.state_dict(model)
        assert list(kept[name]) == SITES, (name, list(kept[name]))
        given = [part for parts in kept[name].values() for part in parts.items() if part[0] != "parameter"]
        assert [t.shape[0] for _, t in given] == [3 if part == "activation" else 2 for part, _ in given], name
        for site, parts in kept["ddp"].items():  # the weights of all are the same, and so are a rank's rows
            for part, value in parts.items():
                if part in kept[name][site]:
                    torch.testing.assert_close(kept[name][site][part], value, rtol=0, atol=1e-4, msg=f"{name} {site}")
        if name == "fsdp2":
            resumed(folder, rank, model)
    torch.save(kept["fsdp2"], folder / f"kept_{rank}.pt")
    torch.compiler.reset()
    model = shared_out(make())
    run = compiled(model)
    steps(run, 0, range(1))
    dcp.save({"metis": KeptState(run)}, checkpoint_id=folder / "of two shares")
    torch.save(metis_compile.state_dict(run), folder / f"share_{rank}.pt")
    of_two = state(run)
    torch.compiler.reset()  # which forgets what is kept, too
    again = make()
    dcp.load({"metis": KeptState(again)}, checkpoint_id=folder / "of two shares")  # before it is shared out
    for before in (shared_out(again), shared_out(make())):
        dcp.load({"metis": KeptState(before)}, checkpoint_id=folder / "of two shares")
        assert same(state(before), of_two)


def resumed(folder: Path, rank: int, model: nn.Module) -> None:
    """From a checkpoint that is loaded before the model is wrapped, and into one that took a step: as it went on."""
    metis = KeptState(model)
    dcp.save({"model": model.state_dict(), "metis": metis}, checkpoint_id=folder / "of two")
    steps(model, rank, range(2, 3))
    went_on = state(model)
    for before in (True, False):
        torch.compiler.reset()
        made = make()
        if before:
            dcp.load({"metis": KeptState(made)}, checkpoint_id=folder / "of two")
        run = compiled(fsdp2(made))
        if not before:
            steps(run, rank, range(7, 8))
            dcp.load({"metis": KeptState(run, folder / "of two")}, checkpoint_id=folder / "of two")
        weights = copy.copy(run.state_dict())
        dcp.load({"model": weights}, checkpoint_id=folder / "of two")
        run.load_state_dict(weights)
        steps(run, rank, range(2, 3))
        assert same(state(run), went_on), before


def load(folder: Path, rank: int) -> None:
    """What one process saved, in each of several."""
    model = make()
    dcp.load({"metis": KeptState(model, folder / "of one")}, checkpoint_id=folder / "of one")
    torch.save(metis_compile.state_dict(model), folder / f"loaded_{rank}.pt")
    model = shared_out(make())
    said = ""
    try:
        dcp.load({"metis": KeptState(model, folder / "of two shares")}, checkpoint_id=folder / "of two shares")
    except ValueError as error:
        said = str(error)
    assert said.count("tensor parallelism of another degree") >= 1, said
    assert state(model) == {}
    fitting = KeptState(model, folder / "of two shares", strict=False)
    dcp.load({"metis": fitting}, checkpoint_id=folder / "of two shares")
    torch.save(metis_compile.state_dict(model), folder / f"fitting_{rank}.pt")


if __name__ == "__main__":
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store of {world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    {"train": train, "load": load}[sys.argv[4]](folder, rank)
    dist.destroy_process_group()
