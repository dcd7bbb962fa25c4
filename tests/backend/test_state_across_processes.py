"""A run that is resumed in another process goes on bit for bit, compiled by Inductor, with short batches in between."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

STEPS = """
import sys
import torch
from torch import nn
import metis_compile

folder, resumed = sys.argv[1], sys.argv[2] == "resumed"
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 32))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
compiled = torch.compile(model, backend="metis")
batches = [torch.randn(rows, 48) for rows in (40, 40, 24, 40, 24, 40)]  # a second graph, for any size, from 24 on


def steps(numbers):
    losses = []
    for i in numbers:
        loss = compiled(batches[i]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if resumed:
    saved = torch.load(f"{folder}/checkpoint.pt")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["generator"])
    if "bases" in saved:
        metis_compile.load_state_dict(compiled, saved["bases"])
else:
    steps(range(3))
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
    torch.save(saved | {"bases": metis_compile.state_dict(compiled)}, f"{folder}/checkpoint.pt")
    torch.save(saved, f"{folder}/without.pt")
print(steps(range(3, 6)))
"""


def losses(folder: Path, what: str) -> str:
    command = [sys.executable, "-c", STEPS, str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    whole = losses(tmp_path, "whole")
    assert whole.count(",") == 2
    assert losses(tmp_path, "resumed") == whole
    torch.save(torch.load(tmp_path / "without.pt"), tmp_path / "checkpoint.pt")
    assert losses(tmp_path, "resumed") != whole, "the bases are part of what decides the run"
