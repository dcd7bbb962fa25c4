"""What a run is: everything that decides its curve, and nothing that does not."""

import hashlib
import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from metis_compile.defaults import DEFAULT_POLICY
from metis_compile.train.errors import TrainError
from metis_compile.train.model import Shape

__all__ = ["MODELS", "Settings", "derived_seed", "resolve_device"]

MODELS = ("gpt", "llama", "llama-8b-block")
OPTIONAL: dict[str, tuple[type, ...]] = {"text": (str, type(None)), "warmup": (int, type(None))}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The identity of a run: two runs with equal settings, text and policy have the same curves."""

    policy: str = DEFAULT_POLICY  # a preset's name or a policy file
    model: str = "gpt"  # or llama, that of transformers, or llama-8b-block: see llama_block.py
    steps: int = 300  # optimizer steps
    seed: int = 0  # of the weights, the batches and the stochastic rounding
    device: str = "cpu"  # cpu, cuda or cuda:N
    dtype: str = "float32"  # what full precision computes in; bfloat16 is autocast
    width: int = 256  # features; a multiple of heads
    layers: int = 4
    heads: int = 4
    context: int = 256  # tokens (bytes) in a sequence
    batch: int = 8  # sequences in a step
    learning_rate: float = 1e-3  # of AdamW at its highest; warm-up, then a cosine down to final_rate of it
    warmup: int | None = None  # steps in which the rate rises; None: 20, or a fifth of a run of less than 100
    final_rate: float = 0.1  # what the cosine ends at, as a share of learning_rate
    clip: float = 1.0  # largest norm of all gradients together; longer ones are scaled down to it
    average_weights: float = (
        0.0  # share of the steps, at the end, whose weights' mean is validated; 0: the last weights
    )
    ema: float = 0.0  # decay of the moving average of weights that is validated; 0: the last weights
    text: str | None = None  # a file to train on; None is the standard library's sources

    def __post_init__(self) -> None:
        for name in ("steps", "width", "layers", "heads", "context", "batch"):
            value = getattr(self, name)
            if value < 1:
                raise TrainError(f"{name} must be at least 1, got {value}")
        if self.width % self.heads:
            raise TrainError(f"width must be a multiple of heads, got width {self.width}, heads {self.heads}")
        if self.model not in MODELS:
            raise TrainError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        if self.model == "llama-8b-block" and self.width // self.heads % 2:
            raise TrainError(f"width / heads must be even for rotary positions, got {self.width} / {self.heads}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainError(f"{name.replace('_', ' ')} must be a finite number above 0, got {getattr(self, name)}")
        if self.warmup is not None and not 1 <= self.warmup <= self.steps:
            raise TrainError(f"warmup must be 1 to {self.steps}, the steps, got {self.warmup}")
        for name, highest in (("final_rate", 1.0), ("average_weights", 1.0), ("ema", math.nextafter(1, 0))):
            if not 0 <= getattr(self, name) <= highest:
                limit = "at most 1" if highest == 1 else "below 1"
                raise TrainError(f"{name.replace('_', ' ')} must be 0 or more and {limit}, got {getattr(self, name)}")
        if self.average_weights and self.ema:
            raise TrainError(
                f"average weights {self.average_weights} and ema {self.ema} are two averages of the weights: give one"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise TrainError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")

    @property
    def shape(self) -> Shape:
        """The model's sizes."""
        return Shape(width=self.width, layers=self.layers, heads=self.heads, context=self.context)

    def learning_rate_at(self, step: int) -> float:
        """The rate of ``step`` (from 0): linear in the warm-up, then a cosine down to ``final_rate`` of the highest."""
        warmup = max(1, min(20, self.steps // 5)) if self.warmup is None else self.warmup
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        falling = 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * falling)

    def differences(self, other: "Settings") -> list[str]:
        """One text for each field that differs, naming both values: self's first."""
        return [
            f"{field.name} {getattr(self, field.name)!r} and not {getattr(other, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]

    @classmethod
    def names(cls) -> list[str]:
        """The fields' names."""
        return [field.name for field in fields(cls)]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Settings":
        """Settings from a plain mapping; TrainError for a key that is not a setting, or a value of another type."""
        unknown = sorted(map(str, set(values) - set(cls.names())))
        if unknown:
            raise TrainError(f"unknown settings: {', '.join(unknown)}")
        for field in fields(cls):
            kinds: tuple[type, ...] = OPTIONAL.get(field.name, (type(field.default),))
            kinds = (float, int) if kinds == (float,) else kinds
            if field.name in values and (
                not isinstance(values[field.name], kinds) or isinstance(values[field.name], bool)
            ):
                raise TrainError(f"{field.name} must be a {kinds[0].__name__}, got {values[field.name]!r}")
        return cls(**values)


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part.

    Each step's batch and each step's rounding noise have a seed of their own, so neither the other model nor
    an interruption can shift a random stream.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def resolve_device(name: str) -> str:
    """``auto`` is cuda where torch sees a GPU, else cpu; TrainError for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise TrainError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA GPUs")
    return name
