"""A model of three blocks, embeddings and a head, to wrap and to cut, and what a policy did to each of its products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import metis_compile
from metis_compile.passes.graph.sites import Site


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.output = nn.Linear(32, 50, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(x)


TOKENS = torch.arange(16).view(2, 8)


def make() -> Model:
    torch.manual_seed(0)
    return Model()


def sites_of_run(run: Callable[[], Any]) -> list[Site]:
    """Products of all graphs that are compiled while `run` and a backward of its result run."""
    torch.compiler.reset()
    with metis_compile.capture() as captured:
        result = run()
        leaves = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
        sum(leaf.float().sum() for leaf in leaves).backward()
    return [site for graph in captured.graphs for site in graph.sites]


def done(sites: list[Site]) -> dict[tuple[str, str], tuple[bool, str | None, object]]:
    """(module, gemm) -> was it rewritten, of which kind, in which block."""
    return {(s.module, s.gemm): (s.reason is None, s.kind, s.block) for s in sites}


@contextmanager
def one_process(folder: Any) -> Iterator[None]:
    """torch.distributed with this process alone, on gloo."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
