"""Run functions on several processes of torch.distributed, many of them in one start of the processes."""

from __future__ import annotations

import datetime
import importlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(seconds=300)  # with a rank that failed and calls no more


def on_processes(count: int, module: str, folder: Path, cases: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Calls functions of `module` on each of `count` gloo processes, one after the other, and gives what came out.

    cases: name -> (the function's name, argument, ...). Returns for each rank name -> result, or the text of what was
    raised, as :class:`Raised`. Cases after one that raised are not run.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._inductor.compile_fx", "metis_compile.backend", "processes"])
    given = (count, module, str(folder), dict(cases), [str(p) for p in sys.path])
    started = [context.Process(target=_run, args=(rank, *given), daemon=True) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    results = []
    for rank in range(count):
        path = folder / f"rank{rank}.pt"
        results.append(torch.load(path, weights_only=False) if path.exists() else {})
    return results


class Raised(str):
    """The traceback of a case that raised."""

    __slots__ = ()


def _run(rank: int, count: int, module: str, folder: str, cases: dict[str, tuple[Any, ...]], path: list[str]) -> None:
    sys.path[:] = path
    os.environ["METIS_VERIFY"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count, timeout=PATIENCE)
    results: dict[str, Any] = {}
    for name, (function, *arguments) in cases.items():
        torch.compiler.reset()
        torch.manual_seed(0)
        try:
            results[name] = getattr(importlib.import_module(module), function)(*arguments)
        except Exception:
            results[name] = Raised(traceback.format_exc())
            break
    torch.save(results, f"{folder}/rank{rank}.pt")
    if not any(isinstance(result, Raised) for result in results.values()):
        dist.destroy_process_group()
