"""Steps of several models in turn, in one process: what disturbs one disturbs the others too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from metis_compile.bench.clock import seconds
from metis_compile.train.settings import Settings, derived_seed
from metis_compile.train.trainer import Trainer

__all__ = ["WARM_UP", "Times", "batch", "in_turn"]

WARM_UP = 2  # rounds before those that count; the first compiles


@dataclass(kw_only=True)
class Times:
    """Seconds of one model's steps, one entry a round."""

    gradients: list[float] = field(default_factory=list)  # forward and backward
    whole: list[float] = field(default_factory=list)  # and clipping and AdamW
    saved_bytes: int = 0  # what a forward keeps for its backward, parameters left out


def batch(settings: Settings, step: int) -> tuple[Tensor, Tensor]:
    """Random int64 [batch, context] tokens and targets, the same for the same step."""
    generator = torch.Generator().manual_seed(derived_seed("tokens", step))
    both = torch.randint(256, (2, settings.batch, settings.context), generator=generator).to(settings.device)
    return both[0], both[1]


def in_turn(
    learners: Sequence[Trainer], settings: Settings, rounds: int, stepped: Callable[[int], None]
) -> list[Times]:
    """The times of ``rounds`` steps of each model, after WARM_UP steps that don't count.

    The order of the models turns round with every round. stepped: called with the number of rounds done.
    """
    times = [Times() for _ in learners]
    entries = list(zip(learners, times, strict=True))
    for step in range(WARM_UP + rounds):
        tokens, targets = batch(settings, step)
        for trainer, found in entries[:: 1 if step % 2 == 0 else -1]:
            gradients = seconds(partial(trainer.gradients, tokens, targets), settings.device)
            update = seconds(partial(trainer.update, step), settings.device)
            if step >= WARM_UP:
                found.gradients.append(gradients)
                found.whole.append(gradients + update)
            elif step == 0:
                found.saved_bytes = trainer.saved_bytes(tokens)
        stepped(step + 1)
    return times
