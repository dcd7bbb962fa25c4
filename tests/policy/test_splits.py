"""Splits, transforms and four-over-six in a policy: how they may be written, and a user's own conditioning."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metis_compile.conditioning import Chain, Mean, Spectral
from metis_compile.policy import Policy, PolicyError, Treatment


def activation(settings: str) -> Treatment:
    text = f"[recipe.a]\nweight = 'high'\ngradient = 'high'\nactivation = {{ format = 'nvfp4', {settings} }}"
    return Policy.from_toml(text, name="run.toml").recipe("a").activation


@pytest.mark.parametrize(
    ("written", "split"),
    [
        ("split = 'mean'", Mean()),
        ("split = { kind = 'mean' }", Mean()),
        ("split = ['mean']", Mean()),
        ("split = { kind = 'mean', factors = 'nvfp4', fold = false }", Mean(factors="nvfp4", fold=False)),
        ("split.kind = 'spectral', split.rank = 8", Spectral(rank=8)),
        ("split = { kind = 'spectral', rank = 0.015 }", Spectral(rank=0.015)),
        ("split = ['mean', { kind = 'spectral', rank = 8 }]", Chain(steps=(Mean(), Spectral(rank=8)))),
    ],
)
def test_ways_of_writing_a_split(written: str, split: object) -> None:
    assert activation(written).split == split
    assert activation(written) == Treatment(format="nvfp4", split=split)


def test_true_and_false_stand_for_a_choice() -> None:
    assert activation("four_over_six = true").four_over_six == "mse"
    assert activation("four_over_six = true, rounding = 'stochastic'").four_over_six == "expected"
    assert activation("hadamard = true").hadamard == "fixed"
    for key in ("four_over_six", "hadamard"):
        assert activation(f"{key} = false") == Treatment(format="nvfp4")


def test_the_short_text() -> None:
    treatment = activation("four_over_six = 'mae', split = ['mean', 'spectral'], hadamard = 'fresh'")
    assert str(treatment) == "nvfp4 1x16 nearest 4/6-mae, split mean + spectral, hadamard fresh"
    assert str(activation("split = { kind = 'mean', partner = 'e4m3 row' }")).endswith("split mean partner=(e4m3 row)")


def test_the_spec_knows_four_over_six_and_nothing_of_the_rest() -> None:
    treatment = activation("four_over_six = true, split = 'mean', hadamard = true")
    assert treatment.spec is not None
    assert str(treatment.spec) == "nvfp4 1x16 nearest 4/6-mse"


OWN = '''
from dataclasses import dataclass
from metis_compile.conditioning import Conditioned

@dataclass(frozen=True, kw_only=True)
class LargestColumns:
    """Splits off the columns with the largest elements."""

    count: int = 1
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"count must be 1 or more, got {self.count}")

    def split(self, x, *, axis=1, seed=None, stream=0, basis=None):
        columns = x.abs().amax(0).topk(self.count).indices
        right = x.new_zeros(self.count, x.shape[1]).scatter(1, columns[:, None], 1.0)
        left = x[:, columns]
        return Conditioned(x - left @ right, left, right)
'''


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "largest_columns.py"
    path.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("largest_columns", None)


def test_a_conditioning_of_the_users_own(own_module: Path) -> None:
    import torch

    text = """
    [recipe.mine]
    weight = "high"
    gradient = "high"
    activation = { format = "nvfp4", split = ["mean", { kind = "largest_columns:LargestColumns", names = ["a"] }] }
    [[rule]]
    recipe = "mine"
    """
    policy = Policy.from_toml(text)
    split = policy.recipe("mine").activation.split
    assert str(policy.recipe("mine").activation).endswith("mean + largest_columns:LargestColumns names=('a',)")
    assert split.steps[1].names == ("a",)
    x = torch.randn(9, 20)
    residual, left, right = split.split(x)
    assert torch.allclose(residual + left @ right, x, atol=1e-5)
    assert Policy.from_toml(policy.to_toml()) == policy
    assert hash(Policy.from_toml(policy.to_toml())) == hash(policy)


def test_the_digest_changes_with_the_source_of_the_users_own(own_module: Path) -> None:
    text = """
    [recipe.mine]
    weight = "high"
    gradient = "high"
    activation = { format = "nvfp4", split = "largest_columns:LargestColumns" }
    """
    before = Policy.from_toml(text).digest()
    assert Policy.from_toml(text).digest() == before
    del sys.modules["largest_columns"]
    own_module.write_text(OWN.replace("topk(self.count)", "topk(self.count, largest=False)") + "# longer than before\n")
    assert Policy.from_toml(text).digest() != before


@pytest.mark.parametrize(
    ("split", "key", "said"),
    [
        ("{ kind = 'largest_columns:LargestColumns', cuont = 2 }", "split, cuont", 'did you mean "count"?'),
        ("{ kind = 'largest_columns:LargestColumns', count = 0 }", "split, count", "count must be 1 or more, got 0"),
        ("'largest_columns:SmallestColumns'", "split, kind", "can't be imported"),
        ("'largest_columns:dataclass'", "split, kind", "must be a frozen dataclass"),
        (
            "'largest_columns'",
            "split, kind",
            'must be one of "mean", "spectral", "channels", "clamp", "package.module:Class"',
        ),
        ("{ kind = 'largest_columns:LargestColumns', names = [['a']] }", "split, names", "must be a text, a number"),
    ],
)
def test_mistakes_with_a_conditioning_of_the_users_own(own_module: Path, split: str, key: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        activation(f"split = {split}")
    assert str(caught.value).startswith(f"run.toml:4: recipe a, activation, {key}: ")
    assert said in str(caught.value)


def test_a_treatment_built_in_python_takes_a_conditioning_or_a_table() -> None:
    assert Treatment(format="nvfp4", split=Mean()) == Treatment(format="nvfp4", split={"kind": "mean"})
    with pytest.raises(PolicyError, match=r"^split\.rank: rank must be"):
        Treatment(format="nvfp4", split={"kind": "spectral", "rank": 0})
