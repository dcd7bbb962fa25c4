"""Train torchtitan's Llama debug model under a policy, block by block, on the CPU: torchtitan 0.3.

    METIS_POLICY=nvfp4 python examples/torchtitan_debug.py --steps 3

It calls torchtitan's own `parallelize_fn`, which compiles each block with the backend that it is given and then shards
it by FSDP2. FlexAttention, torchtitan's default, compiles with Inductor alone: PyTorch's attention takes its place.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims, parallel_dims
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention
from torchtitan.models.llama3 import model_registry

import metis_compile


def build(parallel: ParallelDims, parallelism: ParallelismConfig, backend: str) -> Any:
    """The debug model, sharded, with each of its blocks compiled."""
    spec = model_registry("debugmodel")
    for layer in spec.model.layers:
        assert isinstance(layer.attention.inner_attention, FlexAttention.Config)
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    with torch.device("meta"):
        model = spec.model.build()
    model = spec.parallelize_fn(
        model,
        parallel_dims=parallel,
        training=TrainingConfig(mixed_precision_param="float32"),
        parallelism=parallelism,
        compile_config=CompileConfig(enable=True, components=["model"], backend=backend),
        ac_config=None,
        dump_folder="",
    )
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.init_weights(buffer_device=torch.device("cpu"))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64, help="in a batch of two")
    parser.add_argument("--backend", default="metis")
    arguments = parser.parse_args()
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    parallel_dims.device_type = "cpu"  # torchtitan asks for a GPU
    parallelism = ParallelismConfig(spmd_backend="partial_dtensor")
    parallel = ParallelDims.from_config(parallelism, dist.get_world_size())
    model = build(parallel, parallelism, arguments.backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(dist.get_rank())
    text = torch.randint(256, [2, arguments.tokens + 1], generator=generator)
    for step in range(arguments.steps):
        logits = model(text[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"step {step + 1}  loss {loss.item():.4f}")
    if dist.get_rank() == 0:
        print(metis_compile.summary(model))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
