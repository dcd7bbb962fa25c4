"""One process of a run of Hugging Face's Trainer under DDP, on the CPU.

python trainer_on_ranks.py FOLDER RANK WORLD PORT (CHECKPOINT | -)
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

folder, rank, world, port, checkpoint = sys.argv[1:]
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

import torch  # noqa: E402  # after the environment that tells it of the other processes
import torch.distributed as dist  # noqa: E402
from trainer_runs import outcome, train  # noqa: E402

import metis_compile.backend  # noqa: E402
from metis_compile.inspection.dry_run import run_eagerly  # noqa: E402
from metis_compile.integrations.transformers import MetisCallback  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    backend: Any = metis_compile.backend
    backend.compile_graph = functools.partial(backend.compile_graph, inner_compile=run_eagerly)
    said: list[str] = []
    restored: dict[str, Any] = {}
    begin = MetisCallback.on_train_begin

    def on_train_begin(self: Any, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._say = said.append
        begin(self, args, state, control, model=model, **kwargs)
        restored.update(metis_compile.state_dict(model))

    MetisCallback.on_train_begin = on_train_begin  # type: ignore[method-assign]
    resume = None if checkpoint == "-" else Path(checkpoint)
    given: dict[str, Any] = {"dataloader_drop_last": True, "num_train_epochs": 3, "per_device_train_batch_size": 4}
    trainer = train(Path(folder), resume=resume, ddp_backend="gloo", **given)
    torch.save(
        {"outcome": outcome(trainer), "restored": restored, "said": said, "step": trainer.state.global_step},
        Path(folder) / f"outcome_{rank}.pt",
    )
    dist.destroy_process_group()
