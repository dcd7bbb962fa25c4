"""One model with its optimizer: a step, what it took, and what it keeps for backward."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metis_compile import state as across_steps
from metis_compile.monitoring.monitor import Monitor
from metis_compile.schedule import advance
from metis_compile.train.averaging import WeightAverage
from metis_compile.train.llama import llama, logits_of
from metis_compile.train.llama_block import LlamaBlocks
from metis_compile.train.model import GPT
from metis_compile.train.settings import Settings, derived_seed
from metis_compile.train.variant import Variant

__all__ = ["History", "Trainer", "build", "bytes_saved_for_backward"]


@dataclass
class History:
    """What one model's steps gave so far."""

    losses: list[float] = field(default_factory=list)  # nats per byte, one a step
    seconds: list[float] = field(default_factory=list)  # a step's wall time, without the steps that compiled
    compile_seconds: float | None = None  # wall time of the run's first step, which compiles
    saved_bytes: int | None = None  # what one forward keeps for its backward, parameters left out

    def check(self, steps: int) -> None:
        """Raises ValueError unless this is the history of so many steps."""
        for name in ("losses", "seconds"):
            values = getattr(self, name)
            if not isinstance(values, list) or not all(isinstance(value, float) for value in values):
                raise ValueError(f"the history's {name} must be a list of numbers")
        if len(self.losses) != steps:
            raise ValueError(f"the history must have {steps} losses, one for each step, got {len(self.losses)}")
        for name in ("compile_seconds", "saved_bytes"):
            if steps and not isinstance(getattr(self, name), (int, float)):
                raise ValueError(f"the history's {name} must be a number, got {getattr(self, name)!r}")

    def median_seconds(self) -> float | None:
        """Median step time, None before a step ran that did not compile."""
        return statistics.median(self.seconds) if self.seconds else None

    def mean_loss(self, last: int) -> float:
        """Mean over the last ``last`` steps."""
        return statistics.fmean(self.losses[-last:])


class Trainer:
    """A model compiled as ``variant`` says, trained with AdamW. Learners of the same settings start alike."""

    def __init__(self, variant: Variant, settings: Settings) -> None:
        self.variant = variant
        self.settings = settings
        self.device = torch.device(settings.device)
        self.history = History()
        self.compiled_here = False  # this process has run a step
        self.monitor: Monitor | None = None  # what looks at its training steps
        torch.manual_seed(derived_seed("weights", settings.seed))
        self.model = build(settings).to(self.device)
        for change in variant.changes:
            self.model = change(self.model, settings.seed)
        self.compiled: Any = torch.compile(self.model, backend=variant.backend, options=variant.options)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.average = WeightAverage.of(self.model, settings)

    def step(self, step: int, tokens: Tensor, targets: Tensor) -> float:
        """One optimizer step on int64 [batch, context] tokens; returns and records the loss."""
        torch.manual_seed(derived_seed(self.variant.draw, self.settings.seed, step))
        advance(self.model, step, steps=self.settings.steps)
        start = time.perf_counter()
        loss = self.gradients(tokens, targets)
        self.update(step)
        value = loss.item()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start

        self.history.losses.append(value)
        if self.compiled_here:
            self.history.seconds.append(seconds)
        else:
            self.compiled_here = True
            if self.history.compile_seconds is None:
                self.history.compile_seconds = seconds
            self.history.saved_bytes = self.saved_bytes(tokens)
        return value

    def gradients(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward of int64 [batch, context] tokens: gradients are added; returns the loss."""
        loss = self._loss(tokens, targets)
        loss.backward()
        return loss

    def update(self, step: int) -> None:
        """What follows the backward of ``step``: clipping, AdamW, the weights' average, and no gradients left."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(step)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, step)

    def saved_bytes(self, tokens: Tensor) -> int:
        """What one forward keeps for its backward, parameters left out; nothing moves on."""
        with self.autocast(), self._between_steps():
            return bytes_saved_for_backward(self.compiled, tokens)

    def validate(self, batches: list[tuple[Tensor, Tensor]]) -> float:
        """Mean loss over ``batches``, of the averaged weights where the settings ask for an average.

        It runs the forward that training runs, quantization included: no second graph is compiled for it.
        """
        losses = []
        averaged = nullcontext() if self.average is None else self.average.in_place_of(self.model)
        with self._between_steps(), averaged:
            for i, (tokens, targets) in enumerate(batches):
                torch.manual_seed(derived_seed("validation", self.settings.seed, i))
                losses.append(self._loss(tokens.to(self.device), targets.to(self.device)).item())
        return statistics.fmean(losses)

    def _loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        with self.autocast():
            logits = logits_of(self.compiled(tokens))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Within: the forward that training runs, without moving on what the policy keeps across steps."""
        kept = across_steps.state_dict(self.model)
        with nullcontext() if self.monitor is None else self.monitor.paused():
            yield
        across_steps.load_state_dict(self.model, kept)

    def autocast(self) -> torch.autocast:
        """What the forward runs under."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.dtype == "bfloat16")

    def state_dict(self) -> dict[str, Any]:
        """Everything a later process needs to go on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "across_steps": across_steps.state_dict(self.model),
            "average": None if self.average is None else self.average.state_dict(),
            "history": asdict(self.history),
        }

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Takes weights, optimizer and losses from the :meth:`state_dict` of a learner of another variant."""
        self._load(state)
        self.history = History(losses=list(state["history"]["losses"]))

    def load_state_dict(self, state: dict[str, Any], steps: int) -> None:
        """The inverse of :meth:`state_dict` after so many steps.

        Raises, for a part that is missing or does not fit, what torch raises, or ValueError.
        """
        self._load(state)
        across_steps.load_state_dict(self.model, state["across_steps"])
        self.history = History(**state["history"])
        self.history.check(steps)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        # torch takes any state here, and its fused step would read beyond tensors that are too small.
        for parameter in self.model.parameters():
            kept = self.optimizer.state[parameter]
            float(kept["step"])
            for name in ("exp_avg", "exp_avg_sq"):
                if kept[name].shape != parameter.shape:
                    raise ValueError(
                        f"the optimizer's {name} must be of its parameter's shape {tuple(parameter.shape)}, "
                        f"got {tuple(kept[name].shape)}"
                    )


def build(settings: Settings) -> nn.Module:
    """A new model, of random weights from torch's generator."""
    models = {"gpt": GPT, "llama": llama, "llama-8b-block": LlamaBlocks}
    return models[settings.model](settings.shape)


def bytes_saved_for_backward(model: Any, tokens: Tensor) -> int:
    """Bytes one forward of a compiled ``model`` keeps alive for its backward, parameters and bases left out.

    Counted on the tensors that autograd really holds: each storage once, whatever views of it are saved.
    """
    there = [*model.parameters(), *across_steps.tensors(model)]
    kept_anyway = {t.untyped_storage().data_ptr() for t in there}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept_anyway:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = model(tokens)  # alive until the count is done, so that no storage's address is used twice
    total = sum(held.values())
    del kept
    return total
