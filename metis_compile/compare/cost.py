"""What an arm costs beside full precision: extra FLOPs, counted in the graph, and step time, measured."""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from metis_compile.compare.graphs import rewritten_graphs
from metis_compile.compare.run_config import BASELINE, RunConfig
from metis_compile.cost_model.graph import flops_of
from metis_compile.measure.ratio import Ratio
from metis_compile.train import corpus
from metis_compile.train.determinism import deterministic
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import Trainer, build

__all__ = ["Cost", "extra_flops", "measure"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One arm beside the baseline."""

    flops_ratio: float  # of all matrix products, forward and backward
    step_ratio: float  # median over the rounds of arm / baseline, of the same round
    step_ratio_quartiles: tuple[float, float]
    step_seconds: float  # median
    baseline_seconds: float  # median
    threads: int


def measure(arm: RunConfig, settings: Settings, rounds: int) -> Cost:
    """Time ``rounds`` steps of the arm and of the baseline in turn, after one of each that compiles."""
    text = corpus.load_library() if settings.text is None else corpus.load_file(Path(settings.text).expanduser())
    devices = [torch.device(settings.device)] if settings.device != "cpu" else []
    with torch.random.fork_rng(devices=devices), deterministic(settings.device):
        learners = [Trainer(a.variant(), replace(settings, policy=a.policy)) for a in (RunConfig(text=BASELINE), arm)]
        for step in range(rounds + 1):
            batch = text.batch(seed=settings.seed, step=step, batch=settings.batch, context=settings.context)
            tokens, targets = (part.to(settings.device) for part in batch)
            for trainer in learners[:: 1 if step % 2 == 0 else -1]:
                trainer.step(step, tokens, targets)
        high, low = (trainer.history.seconds for trainer in learners)
        ratio = Ratio.of(low, high)
        return Cost(
            flops_ratio=extra_flops(arm, settings),
            step_ratio=ratio.median,
            step_ratio_quartiles=(ratio.low, ratio.high),
            step_seconds=statistics.median(low),
            baseline_seconds=statistics.median(high),
            threads=torch.get_num_threads(),
        )


def extra_flops(arm: RunConfig, settings: Settings) -> float:
    """FLOPs of the arm's matrix products over those of the plain model, forward and backward."""
    plain, model = build(settings), build(settings)
    for change in arm.variant().changes:
        model = change(model, settings.seed)
    return flops(model, settings, arm.policy) / flops(plain, settings, BASELINE)


def flops(model: torch.nn.Module, settings: Settings, policy: str) -> int:
    """FLOPs of one training step's matrix products in the rewritten graph, attention included."""
    tokens = torch.zeros(settings.batch, settings.context, dtype=torch.int64)
    graphs = [g.joint_after for g in rewritten_graphs(model, tokens, policy) if g.joint_after is not None]
    return int(sum(flops_of(node) for graph in graphs for node in graph.graph.nodes))
