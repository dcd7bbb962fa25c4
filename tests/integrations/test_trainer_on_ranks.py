"""Hugging Face's Trainer on several processes: runs that resume on as many, and on another number."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import torch
from ranks_of import run_ranks

WORKER = Path(__file__).parents[1] / "support" / "trainer_on_ranks.py"


def run(folder: Path, world: int, checkpoint: Path | None = None) -> list[dict[str, Any]]:
    """What each process ended with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    resumed = "-" if checkpoint is None else str(checkpoint)
    run_ranks(WORKER, folder, world, str(port), resumed, environment={"METIS_POLICY": ""})
    return [torch.load(folder / f"outcome_{rank}.pt") for rank in range(world)]


def kept(states: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {f"{site}.{part}": value for site, parts in states.items() for part, value in parts.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_resumes_on_any_number_of_processes(tmp_path: Path) -> None:
    """On as many as before it is the uninterrupted one, bit for bit; on more, each takes what one of those had."""
    whole = run(tmp_path / "run", 2)
    at = tmp_path / "run" / "checkpoint-4"
    saved = [kept(torch.load(at / f"metis_state_{rank}.pt", weights_only=True)["kept"]) for rank in range(2)]
    assert whole[0]["step"] > 4
    assert not same(*saved), "each process has bases of its own rows"
    again = run(tmp_path / "run", 2, at)
    for before, after in zip(whole, again, strict=True):
        assert same(before["outcome"], after["outcome"])
    more = run(tmp_path / "run", 3, at)
    for rank, found in enumerate(more):
        assert same(kept(found["restored"]), saved[rank % 2])
        assert same(
            {k: v for k, v in found["outcome"].items() if k in ("up.weight", "down.weight")},
            {k: v for k, v in more[0]["outcome"].items() if k in ("up.weight", "down.weight")},
        )
    assert "is of 2 processes, and this run has 3: process r goes on" in more[0]["said"][0]
