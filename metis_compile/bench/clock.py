"""How long something takes: wall time on the CPU, events on a CUDA stream, and CPU time over all processes."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["cpu_seconds", "seconds"]


def seconds(run: Callable[[], object], device: str) -> float:
    """Seconds that ``run`` takes; on CUDA, from before its first kernel to the end of its last."""
    if torch.device(device).type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        before.record()
        run()
        after.record()
        torch.cuda.synchronize()
        return float(before.elapsed_time(after)) / 1000


def cpu_seconds() -> float:
    """CPU seconds of this process so far, and of all that it started: C++ compilers, and Inductor's workers."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used) + living_descendants()


def living_descendants() -> float:
    """CPU seconds of processes that still run, as Linux tells; 0 elsewhere."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; what is counted comes after it.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
        ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
    total, waiting = 0, list(children.get(os.getpid(), []))
    while waiting:
        process = waiting.pop()
        total += ticks[process]
        waiting += children.get(process, [])
    return total / os.sysconf("SC_CLK_TCK")
