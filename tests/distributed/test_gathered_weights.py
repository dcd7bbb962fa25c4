"""Which of FSDP's collectives are in a graph: what docs/distributed.md says of a low-bit all-gather."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from graphs import eager_backend
from parallel import batches, loss_of, make
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.utils.parametrize import register_parametrization
from torch.testing._internal.distributed.fake_pg import FakeStore

import metis_compile
from metis_compile import Captured

GATHER = torch.ops._c10d_functional.all_gather_into_tensor.default


@pytest.fixture(autouse=True)
def _four_processes_of_which_one_is_there() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def sharded() -> nn.Module:
    mesh, model = init_device_mesh("cpu", (4,)), make()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


class Gather(nn.Module):
    def forward(self, parameter: DTensor) -> Tensor:
        return parameter.redistribute(placements=[Replicate()]).to_local()


def gathering_by_itself() -> nn.Module:
    mesh, model = init_device_mesh("cpu", (4,)), make()
    for module in list(model.modules()):
        for name, parameter in list(module._parameters.items()):
            assert parameter is not None
            module._parameters[name] = nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)]))
            register_parametrization(module, name, Gather(), unsafe=True)
    return model


def captured(model: nn.Module, **options: Any) -> Captured:
    with metis_compile.capture() as found:
        loss_of(torch.compile(model, backend=eager_backend("mxfp8"), **options)(batches(1)[0])).backward()
    return found


def gathers(found: Captured) -> list[int]:
    return [len(g.joint_before.graph.find_nodes(op="call_function", target=GATHER)) for g in found.graphs]


@pytest.mark.parametrize("compiled_autograd", [False, True])
def test_fsdp2_gathers_outside_of_the_graphs(compiled_autograd: bool) -> None:
    with torch._dynamo.config.patch(compiled_autograd=compiled_autograd):
        found = captured(sharded())
    assert gathers(found) == [0, 0]
    assert sum(site.reason is None for graph in found.graphs for site in graph.sites) == 11


def test_fsdp2_is_no_single_graph() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="marked as skipped"):
        captured(sharded(), fullgraph=True)


def test_a_model_that_gathers_by_itself_has_it_in_its_graph() -> None:
    found = captured(gathering_by_itself())
    assert gathers(found) == [10]
    assert sum(site.reason is None for site in found.graphs[0].sites) == 11
    assert metis_compile.data_parallel_rank() == 0, "of all ranks: it has to be stated here"
