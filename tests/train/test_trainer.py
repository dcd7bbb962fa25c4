import pytest
import torch
from graphs import eager_backend
from torch import nn

from metis_compile import Policy
from metis_compile.train.averaging import WeightAverage
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


def test_clipping_is_a_setting(settings, variants, backend) -> None:
    tokens = torch.arange(32).reshape(2, 16)
    largest = []
    for clip in (1e-3, 1e3):
        trainer = Trainer(variants()[0], settings(clip=clip))
        trainer.gradients(tokens, tokens + 1)
        before = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm()
        assert 1e-3 < before < 1e3
        trainer.update(0)
        moments = torch.cat([trainer.optimizer.state[p]["exp_avg"].flatten() for p in trainer.model.parameters()])
        largest.append((moments.norm() / 0.1 / before).item())  # the first moment is a tenth of the gradient
    assert largest[0] < 0.5
    assert largest[1] == pytest.approx(1.0)


def test_validation_reads_the_averaged_weights_and_leaves_the_own(settings, variants, backend) -> None:
    tokens = torch.arange(32).reshape(2, 16)
    trainer = Trainer(variants()[0], settings(steps=6, average_weights=0.5))
    plain = Trainer(variants()[0], settings(steps=6))
    seen = []
    for step in range(6):
        assert trainer.step(step, tokens, tokens + 1) == plain.step(step, tokens, tokens + 1)
        seen.append(trainer.model.token.weight.detach().clone())
    mean = torch.stack(seen[3:]).mean(0)
    batches = [(tokens, tokens + 1)]
    loss = trainer.validate(batches)
    assert torch.equal(trainer.model.token.weight, seen[-1])
    assert loss != plain.validate(batches)
    with trainer.average.in_place_of(trainer.model):
        torch.testing.assert_close(trainer.model.token.weight, mean)
        assert trainer.gradients(tokens, tokens + 1).item() == loss


def test_a_moving_average_of_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, first=1, decay=0.75)
    for step, value in enumerate((8.0, 4.0, 2.0)):
        nn.init.constant_(model.weight, value)
        average.update(model, step)
    with average.in_place_of(model):
        assert model.weight.item() == 0.75 * 4 + 0.25 * 2  # step 0 does not count
    assert model.weight.item() == 2.0


def test_an_average_is_resumed(settings, variants, backend) -> None:
    tokens = torch.arange(32).reshape(2, 16)
    batches = [(tokens, tokens + 1)]
    changes: dict = {"steps": 6, "ema": 0.9}
    straight, first, second = (Trainer(variants()[0], settings(**changes)) for _ in range(3))
    for step in range(6):
        straight.step(step, tokens, tokens + 1)
        if step < 3:
            first.step(step, tokens, tokens + 1)
    second.load_state_dict(first.state_dict(), 3)
    for step in range(3, 6):
        second.step(step, tokens, tokens + 1)
    assert second.validate(batches) == straight.validate(batches)
    other = first.state_dict()
    other["average"]["values"]["token.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="the average of the weights must have the model's parameters"):
        second.load_state_dict(other, 3)


def test_a_llama_trains(settings) -> None:
    pytest.importorskip("transformers")
    trainer = Trainer(Variant(label="llama", backend="eager"), settings(model="llama", width=32))
    assert type(trainer.model).__name__ == "LlamaForCausalLM"
    tokens = torch.randint(256, (2, 16))
    losses = [trainer.step(step, tokens, tokens) for step in range(4)]
    assert losses[-1] < losses[0]
