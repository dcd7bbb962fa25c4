"""Calibrates a GPT that full precision has trained for a while, for a larger one on a device, and writes the policies.

    python benchmarks/calibration.py --out benchmarks/results/calibrate
    metis compare nvfp4 best benchmarks/results/calibrate/{as-nvfp4,as-best}.toml --branch 300 ...

The errors are those of the small GPT, the costs those of one of width 4096 and 8192 tokens on the device. `as-nvfp4`
errs least at the cost of `nvfp4` or less; `as-best` costs least with the error of `best` or less (or
a hundredth of a percent, below which errors are chance).
"""

import argparse
import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metis_compile import Calibration, calibrate, explain
from metis_compile.measure.machine import machine
from metis_compile.train import corpus
from metis_compile.train.model import GPT, Shape
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import Trainer
from metis_compile.train.variant import FULL_PRECISION

LARGE = Shape(width=4096, layers=4, heads=32, context=2048)
CHANCE = 1e-4  # changes of the loss below it are
CANDIDATES = ("mxfp8", "nvfp4", "best")


class Loss(nn.Module):
    """The loss of a GPT."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(tokens).flatten(0, 1), targets.flatten())


def trained(settings: Settings, steps: int) -> tuple[nn.Module, corpus.Corpus]:
    """A GPT after so many steps of a run of those settings, in full precision."""
    text = corpus.load_library()
    trainer = Trainer(FULL_PRECISION, settings)
    for step in range(steps):
        batch = text.batch(seed=settings.seed, step=step, batch=settings.batch, context=settings.context)
        loss = trainer.step(step, *batch)
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss:.4f}", flush=True)
    return trainer.model, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="b200")
    parser.add_argument("--steps", type=int, default=600, help="of the whole run")
    parser.add_argument("--branch", type=int, default=300, help="of them, in full precision before calibrating")
    parser.add_argument("--batches", type=int, default=4)
    for name, value in (("width", 128), ("layers", 4), ("heads", 4), ("context", 128), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    size = {name: getattr(given, name) for name in ("width", "layers", "heads", "context", "batch")}
    settings = Settings(policy="high", steps=given.steps, **size)
    model, text = trained(settings, given.branch)
    loss = Loss(model)
    batches = text.validation_batches(count=given.batches, batch=given.batch, context=given.context)

    with torch.device("meta"):
        large = Loss(GPT(LARGE))
        tokens = torch.zeros(4, LARGE.context, dtype=torch.int64)
    cost = explain(large, tokens, tokens, policy="nvfp4").cost(given.device).ratio
    common = {"device": given.device, "candidates": CANDIDATES, "cost_of": (large, (tokens, tokens))}
    about = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "settings": asdict(settings),
        "branch": given.branch,
        "large": asdict(LARGE) | {"tokens": tokens.numel()},
    }
    as_nvfp4 = calibrate(loss, batches, budget_cost=cost, **common)
    keep(given.out / "as-nvfp4", as_nvfp4, about)
    as_best = calibrate(loss, batches, budget_error=max(as_nvfp4.candidates["best"].loss, CHANCE), **common)
    keep(given.out / "as-best", as_best, about)


def keep(path: Path, found: Calibration, about: dict[str, Any]) -> None:
    """The policy, and the numbers beside it."""
    path.with_suffix(".toml").write_text(found.to_toml())
    path.with_suffix(".json").write_text(json.dumps(about | found.to_dict(), indent=1) + "\n")
    print(found, flush=True)


if __name__ == "__main__":
    main()
