import pytest
import torch
from graphs import eager_backend
from torch import nn

from metis_compile import Policy
from metis_compile.train.trainer import Trainer, bytes_saved_for_backward
from metis_compile.train.variant import Variant


def test_saved_bytes_are_the_activations_and_not_the_parameters() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(10, 8)
    # The first linear keeps its input, the ReLU its output, which is the last one's input too: counted once.
    assert bytes_saved_for_backward(model, x) == 4 * 10 * (8 + 32)


def test_saved_bytes_are_counted_on_the_compiled_graph() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(10, 8)
    compiled(x).sum().backward()
    eager, graph = (bytes_saved_for_backward(m, x) for m in (model, compiled))
    assert graph == eager == 4 * 10 * (8 + 32 + 32)


def test_two_learners_start_alike_and_learn(settings, variants, backend) -> None:
    first, second = (Trainer(variant, settings(steps=40, learning_rate=1e-2)) for variant in variants())
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    tokens = torch.arange(32).reshape(2, 16)
    losses = [first.step(step, tokens, tokens + 1) for step in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert first.history.losses == losses
    assert len(first.history.seconds) == 39  # the first step is compile_seconds
    assert first.history.compile_seconds > 0


def test_a_different_seed_gives_different_weights(settings, variants, backend) -> None:
    a, b = (Trainer(variants()[0], settings(seed=seed)).model.token.weight for seed in (0, 1))
    assert not torch.equal(a, b)


def test_what_a_policy_keeps_is_resumed_and_not_moved_on_by_measuring(settings) -> None:
    split = '{ format = "nvfp4", split = { kind = "spectral", rank = 2 } }'
    policy = Policy.from_toml(
        f"""
        [recipe.r]
        weight = "nvfp4"
        activation = {split}
        gradient = {split}
        [[rule]]
        has_weight = true
        recipe = "r"
        """
    )
    variant = Variant(label="kept", backend=eager_backend(policy))  # type: ignore[arg-type]
    tokens = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    straight = Trainer(variant, settings())
    losses = [straight.step(step, tokens, tokens + 1) for step in range(4)]

    torch.compiler.reset()
    first = Trainer(variant, settings())
    assert [first.step(step, tokens, tokens + 1) for step in range(2)] == losses[:2]
    validation = first.validate([(tokens, tokens)])
    saved = first.state_dict()
    assert saved["across_steps"]
    torch.compiler.reset()
    second = Trainer(variant, settings())
    second.load_state_dict(saved, 2)
    assert second.validate([(tokens, tokens)]) == validation
    assert [second.step(step, tokens, tokens + 1) for step in (2, 3)] == losses[2:]
    assert second.history.saved_bytes == first.history.saved_bytes


def test_a_llama_trains(settings) -> None:
    pytest.importorskip("transformers")
    trainer = Trainer(Variant(label="llama", backend="eager"), settings(model="llama", width=32))
    assert type(trainer.model).__name__ == "LlamaForCausalLM"
    tokens = torch.randint(256, (2, 16))
    losses = [trainer.step(step, tokens, tokens) for step in range(4)]
    assert losses[-1] < losses[0]
