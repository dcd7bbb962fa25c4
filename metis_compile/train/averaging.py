"""Weights averaged over steps, for evaluation: what one step's draws moved is mostly averaged out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from metis_compile.train.settings import Settings

__all__ = ["WeightAverage"]


class WeightAverage:
    """The average of every parameter of a model in training, in the parameter's dtype and on its device.

    first: the first step (from 0) whose weights count. decay: None for the mean of all that count, or that of an
    exponential moving average, average = decay average + (1 - decay) weights, which begins at the first of them.
    """

    def __init__(self, model: nn.Module, first: int, decay: float | None) -> None:
        self.first, self.decay = first, decay
        self.count = 0  # steps in it so far
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @classmethod
    def of(cls, model: nn.Module, settings: Settings) -> "WeightAverage | None":
        """What the settings ask for; None for no average."""
        if settings.ema:
            return cls(model, 0, settings.ema)
        if settings.average_weights:
            return cls(model, min(settings.steps - 1, round(settings.steps * (1 - settings.average_weights))), None)
        return None

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after ``step``."""
        if step < self.first:
            return
        self.count += 1
        share = 1 / self.count if self.decay is None or self.count == 1 else 1 - self.decay
        for name, parameter in model.named_parameters():
            self.values[name].lerp_(parameter, share)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Within: the model has the averaged weights; its own are put back. Before the first that counts, its own."""
        if not self.count:
            yield
            return
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        fill(model, self.values)
        try:
            yield
        finally:
            fill(model, own)

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs to go on."""
        return {"count": self.count, "values": {name: value.clone() for name, value in self.values.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse. Raises ValueError for the average of another model."""
        count, values = state["count"], state["values"]
        shapes = {name: value.shape for name, value in values.items()}
        if shapes != {name: value.shape for name, value in self.values.items()}:
            raise ValueError("the average of the weights must have the model's parameters and their shapes")
        self.count = int(count)
        for name, value in self.values.items():
            value.copy_(values[name])


@torch.no_grad()
def fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])
