import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metis_compile.train.loop import Options, run
from metis_compile.train.model import GPT
from metis_compile.train.settings import Settings
from metis_compile.train.variant import Variant

Forward = Callable[[int, nn.Module, Tensor], Tensor]
TINY = {"steps": 6, "width": 16, "layers": 1, "heads": 2, "context": 16, "batch": 2}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text to learn from: a few kB of words in a fixed order."""
    path = tmp_path / "text.txt"
    generator = torch.Generator().manual_seed(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    path.write_text(" ".join(words[i] for i in torch.randint(5, (2000,), generator=generator)))
    return path


@pytest.fixture
def settings(text: Path) -> Callable[..., Settings]:
    return lambda **changes: Settings(**({"text": str(text), **TINY} | changes))


@pytest.fixture
def variants() -> Callable[..., tuple[Variant, Variant]]:
    """Two variants that compile nothing."""

    def make(policy: str = "eager", digest: str = "1") -> tuple[Variant, Variant]:
        return (
            Variant(label="full precision", backend="eager"),
            Variant(label="nvfp4", backend=policy, digest=digest),
        )

    return make


@pytest.fixture
def go(tmp_path: Path, settings: Any, variants: Any, backend: Any) -> Callable[..., Any]:
    """Run with tiny settings; what is passed by name goes where it belongs."""

    def call(*, policy: str = "eager", digest: str = "1", **changes: Any) -> Any:
        options = {name: changes.pop(name) for name in ("resume", "checkpoint_every") if name in changes}
        options["out"] = changes.pop("out", tmp_path / "out")
        return run(settings(**changes), Options(**options), variants=variants(policy, digest))

    return call


class Uncompiled(nn.Module):
    """What ``torch.compile`` returns in these tests: the model, run by ``forward(call, model, tokens)``."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.model, self.run = model, forward
        self.calls = itertools.count()

    def forward(self, tokens: Tensor) -> Tensor:
        # The warm-up's model is not counted.
        if self.run is None or not isinstance(self.model, GPT):
            return self.model(tokens)
        return self.run(next(self.calls), self.model, tokens)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Forward], str]:
    """Stand in for torch.compile, which costs seconds; register how a backend's forward runs."""
    forwards: dict[str, Forward] = {}

    def compile(model: nn.Module, *, backend: str, options: Any) -> nn.Module:
        return Uncompiled(model, None if backend == "eager" else forwards[backend])

    def register(name: str, forward: Forward) -> str:
        forwards[name] = forward
        return name

    monkeypatch.setattr(torch, "compile", compile)
    return register


@pytest.fixture
def noisy(backend: Any) -> str:
    """A backend that draws from torch's generator in the forward, as stochastic rounding does."""
    return backend("noisy", lambda call, model, tokens: with_noise(model(tokens)))


@pytest.fixture
def interrupting(backend: Any) -> Callable[..., str]:
    """The noisy backend, with signals arriving during one forward."""

    def make(call: int, number: int = signal.SIGINT, times: int = 1) -> str:
        def forward(now: int, model: nn.Module, tokens: Tensor) -> Tensor:
            if now == call:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return with_noise(model(tokens))

        return backend("interrupting", forward)

    return make


def with_noise(logits: Tensor) -> Tensor:
    return logits + 0.1 * torch.rand_like(logits)
