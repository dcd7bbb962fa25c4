"""Calls in turn, a call a round: how long each takes by itself, with nothing of what it reads in a cache."""

from collections.abc import Callable, Sequence

import torch

from metis_compile.bench.clock import seconds
from metis_compile.bench.turns import WARM_UP

__all__ = ["in_rounds"]

# Bytes that are written before each call. On a GPU that also takes longer than it takes to launch what comes behind, so
# that no call waits for the CPU.
FLUSHED = {"cpu": 2**27, "cuda": 2**30}


def in_rounds(
    calls: Sequence[Callable[[], object]], rounds: int, device: str, stepped: Callable[[int], None]
) -> list[list[float]]:
    """Seconds of each call in each of ``rounds``, after WARM_UP rounds that don't count; the order turns round.

    stepped: called with the number of rounds done.
    """
    kind = torch.device(device).type
    flushed = torch.empty(FLUSHED[kind], dtype=torch.uint8, device=device)
    times: list[list[float]] = [[] for _ in calls]
    entries = list(zip(calls, times, strict=True))
    for i in range(WARM_UP + rounds):
        turn = entries[:: 1 if i % 2 == 0 else -1]
        for (_, found), taken in zip(turn, one_round([call for call, _ in turn], flushed), strict=True):
            if i >= WARM_UP:
                found.append(taken)
        stepped(i + 1)
    return times


def one_round(calls: Sequence[Callable[[], object]], flushed: torch.Tensor) -> list[float]:
    """Seconds of each; on CUDA from where the device is done with the flush to the end of the call's last kernel."""
    if flushed.device.type == "cpu":
        found = []
        for call in calls:
            flushed.zero_()
            found.append(seconds(call, "cpu"))
        return found
    with torch.cuda.device(flushed.device):
        events = []
        for call in calls:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flushed.zero_()
            before.record()
            call()
            after.record()
            events.append((before, after))
        torch.cuda.synchronize()
        return [float(before.elapsed_time(after)) / 1000 for before, after in events]
