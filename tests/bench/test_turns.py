from typing import Any

import torch

from metis_compile.bench.candidate import AUTOCAST, PLAIN, trainer
from metis_compile.bench.turns import WARM_UP, batch, in_turn
from metis_compile.train.trainer import Trainer


def test_every_round_has_every_model_in_turning_order(settings: Any, uncompiled: None, monkeypatch: Any) -> None:
    gradients = Trainer.gradients
    order: list[int] = []

    def recorded(self: Trainer, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        order.append(learners.index(self))
        return gradients(self, tokens, targets)

    monkeypatch.setattr(Trainer, "gradients", recorded)
    learners = [trainer(PLAIN, settings()), trainer("nvfp4", settings())]
    done: list[int] = []
    times = in_turn(learners, settings(), 4, done.append)
    assert order == [0, 1, 1, 0] * 3
    assert done == list(range(1, WARM_UP + 4 + 1))
    for found in times:
        assert len(found.gradients) == len(found.whole) == 4  # the first steps, which compile, are not among them
        assert all(0 < g < w for g, w in zip(found.gradients, found.whole, strict=True))
        assert found.saved_bytes > 0


def test_the_models_learn_and_start_alike(settings: Any, uncompiled: None) -> None:
    mine, theirs = trainer(PLAIN, settings()), trainer("nvfp4", settings())
    start = [p.clone() for p in mine.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(start, theirs.model.parameters(), strict=True))
    in_turn([mine], settings(), 1, lambda done: None)
    assert not any(torch.equal(a, b) for a, b in zip(start, mine.model.parameters(), strict=True))
    assert all(p.grad is None for p in mine.model.parameters())


def test_autocast_is_plain_inductor_in_bfloat16(settings: Any, uncompiled: None) -> None:
    made = trainer(AUTOCAST, settings())
    assert (made.settings.dtype, made.variant.backend) == ("bfloat16", "inductor")
    assert trainer(PLAIN, settings()).variant.backend == "inductor"
    assert trainer("nvfp4", settings()).variant.backend == "metis"


def test_batches_are_the_same_for_the_same_step(settings: Any) -> None:
    (tokens, targets), again, other = (batch(settings(), step) for step in (3, 3, 4))
    assert torch.equal(tokens, again[0])
    assert not torch.equal(tokens, targets)
    assert not torch.equal(tokens, other[0])
    assert tokens.shape == (1, 32)
