import pytest
import torch

from metis_compile.compare.run_config import RunConfig, nudged, perturbed, reparametrized, shuffled
from metis_compile.train.errors import TrainError
from metis_compile.train.model import GPT, Shape
from metis_compile.weights.reparametrization import SplitLinear

SHAPE = Shape(width=16, layers=1, heads=2, context=16)


def test_an_arm_is_a_policy_and_changes() -> None:
    arm = RunConfig(text="runs/mine.toml+nudged")
    assert (arm.policy, arm.changes, arm.name) == ("runs/mine.toml", ["nudged"], "mine+nudged")
    assert not arm.is_baseline
    assert RunConfig(text="high").is_baseline
    assert not RunConfig(text="high+nudged").is_baseline


def test_full_precision_is_plain_inductor_and_a_policy_is_metis() -> None:
    assert RunConfig(text="high+nudged").variant().backend == "inductor"
    variant = RunConfig(text="averis").variant()
    assert (variant.backend, variant.label) == ("metis", "averis")
    assert variant.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nvfp4+nudge", r"unknown change 'nudge' in 'nvfp4\+nudge': .*did you mean 'nudged'\?"),
        ("+nudged", "a policy must stand before"),
    ],
)
def test_what_is_no_arm(text: str, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        RunConfig(text=text)


def test_nudging_changes_every_weight_by_about_a_millionth() -> None:
    torch.manual_seed(0)
    model, plain = GPT(SHAPE), GPT(SHAPE)
    plain.load_state_dict(model.state_dict())
    nudged(model, 0)
    for new, old in zip(model.parameters(), plain.parameters(), strict=True):
        if old.dim() < 2:
            continue
        change = ((new - old) / old).abs()
        assert 0.3e-6 < change.median() < 1.5e-6
        assert change.max() < 1e-5
    again = GPT(SHAPE)
    again.load_state_dict(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(nudged(again, 0).parameters(), model.parameters(), strict=True))


def test_perturbing_changes_every_weight_by_about_a_hundredth() -> None:
    torch.manual_seed(0)
    model, plain = GPT(SHAPE), GPT(SHAPE)
    plain.load_state_dict(model.state_dict())
    perturbed(model, 0)
    changes = [
        ((new - old) / old)[old != 0].detach() for new, old in zip(model.parameters(), plain.parameters(), strict=True)
    ]
    assert torch.cat(changes).std() == pytest.approx(0.01, rel=0.05)
    assert torch.cat(changes).mean() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "chance"),
    [
        ("nvfp4+redrawn", True),
        ("high+perturbed", True),
        ("nvfp4+redrawn+nudged", True),
        ("nvfp4", False),
        ("high+reparametrized", False),
        ("high+reparametrized+redrawn", False),
    ],
)
def test_what_differs_by_chance_alone(text: str, chance: bool) -> None:
    assert RunConfig(text=text).is_chance == chance


def test_redrawing_changes_the_random_numbers_alone() -> None:
    arm = RunConfig(text="nvfp4+redrawn")
    plain = RunConfig(text="nvfp4").variant()
    assert not arm.changes_the_start
    assert arm.variant().changes == ()
    assert arm.variant().digest == plain.digest
    assert arm.variant().draw != plain.draw
    assert RunConfig(text="nvfp4+shuffled").changes_the_start


def test_shuffling_keeps_the_values_of_every_parameter_and_not_their_places() -> None:
    torch.manual_seed(0)
    model, plain, again = GPT(SHAPE), GPT(SHAPE), GPT(SHAPE)
    plain.load_state_dict(model.state_dict())
    again.load_state_dict(model.state_dict())
    shuffled(model, 0)
    for new, old in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(new.flatten().sort().values, old.flatten().sort().values)
        if old.dim() >= 2:
            assert (new == old).float().mean() < 0.1
    assert all(torch.equal(a, b) for a, b in zip(shuffled(again, 0).parameters(), model.parameters(), strict=True))


def test_reparametrizing_leaves_the_head() -> None:
    model = reparametrized(GPT(SHAPE), 0)
    split = [name for name, module in model.named_modules() if isinstance(module, SplitLinear)]
    assert len(split) == 6
    assert "lm_head" not in split
