"""A split of one's own is code: what importing it may do, and who may name it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metis_compile.policy import Policy, PolicyError

CLASS = """
from dataclasses import dataclass
from metis_compile import Conditioned

@dataclass(frozen=True, kw_only=True)
class Mine:
    count: int = 1
    def __post_init__(self):
        {}
    def split(self, x, *, axis=1, seed=None, stream=0, basis=None):
        return Conditioned(x, x[:, :1] * 0, x[:1] * 0)
"""
RECIPE = """
[recipe.mine]
weight = "high"
gradient = "high"
activation = {{ format = "nvfp4", split = {} }}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes a module named `their_splits`; one that runs appends to the list `sys.their_runs`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "their_runs", [], raising=False)

    def write(body: str) -> None:
        sys.modules.pop("their_splits", None)
        (tmp_path / "their_splits.py").write_text("import sys\nsys.their_runs.append(1)\n" + body)

    yield write
    sys.modules.pop("their_splits", None)


def policy(split: str = '"their_splits:Mine"') -> str:
    return RECIPE.format(split)


@pytest.mark.parametrize(
    "split",
    ['"their_splits:Mine"', '{ kind = "their_splits:Mine" }', '["mean", { kind = "their_splits:Mine" }]', '["a:b"]'],
)
def test_without_trust_nothing_is_imported(module: Any, tmp_path: Path, split: str) -> None:
    module(CLASS.format("pass"))
    (tmp_path / "run.toml").write_text(policy(split))
    (tmp_path / "child.toml").write_text('extends = "run.toml"')
    for name in ("run.toml", "child.toml"):
        with pytest.raises(PolicyError, match="names code, which loading the policy would import and run") as caught:
            Policy.load(tmp_path / name, trust=False)
        assert (caught.value.file, caught.value.line) == (str(tmp_path / "run.toml"), 5)
        assert "trust=False" in str(caught.value)
    with pytest.raises(PolicyError, match="names code"):
        Policy.from_toml(policy(split), trust=False)
    assert sys.their_runs == []  # type: ignore[attr-defined]
    assert "their_splits" not in sys.modules


def test_with_trust_it_is_imported(module: Any, tmp_path: Path) -> None:
    module(CLASS.format("pass"))
    (tmp_path / "run.toml").write_text(policy())
    loaded = Policy.load(tmp_path / "run.toml")
    assert type(loaded.recipe("mine").activation.split).__name__ == "Mine"
    assert sys.their_runs == [1]  # type: ignore[attr-defined]
    assert Policy.load(loaded, trust=False) is loaded  # what is loaded is loaded


def test_splits_that_are_built_in_need_no_trust() -> None:
    for name in ("metis", "metis-v1", "nvfp4"):
        assert Policy.load(name, trust=False) == Policy.load(name)
    assert Policy.from_toml(policy('["mean", "spectral"]'), trust=False)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise SystemExit(3)", "can't be imported: SystemExit 3"),
        ("sys.exit()", "can't be imported: SystemExit"),
        ("raise KeyError('a')", "can't be imported: KeyError 'a'"),
        ("class Odd(BaseException): pass\nraise Odd('no\\nyes')", "can't be imported: Odd no yes"),
        ("import nobodys", "can't be imported: No module named 'nobodys'"),
        ("1 +", "can't be imported: SyntaxError invalid syntax"),
        ("Mine = 3", "must be a frozen dataclass"),
        ("def __getattr__(name): raise RuntimeError('no')", "can't be imported: RuntimeError no"),
        (
            "class Meta(type):\n  split = property(lambda self: 1 / 0)\nclass Mine(metaclass=Meta): pass",
            "must be a frozen",
        ),
        (CLASS.format("raise KeyError('a')"), "KeyError: 'a'"),
        (CLASS.format("raise ValueError('count must be 2')"), "count must be 2"),
        (CLASS.format("1 / 0"), "ZeroDivisionError: division by zero"),
        (CLASS.format("object.__setattr__(self, 'count', float('nan'))"), "count must be a text, a number"),
        (CLASS.format("object.__setattr__(self, 'count', [])"), "count must be a text, a number"),
    ],
)
def test_what_a_module_raises_is_a_policy_error(module: Any, body: str, said: str) -> None:
    module(body)
    with pytest.raises(PolicyError) as caught:
        Policy.from_toml(policy(), name="run.toml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.file, caught.value.line) == ("run.toml", 5)
    if "can't be imported" in said:
        assert "a split that names a class imports, and so runs, the module 'their_splits'" in str(caught.value)


@pytest.mark.parametrize(
    "kind", [".x:y", ":", "x:", ":y", "a..b:c", "a:b:c", "\\u0000:a", " :a", "os:path", "os:nothing"]
)
def test_a_name_that_is_no_class(kind: str) -> None:
    with pytest.raises(PolicyError, match=r"^run.toml:5: recipe mine, activation, split, kind: "):
        Policy.from_toml(policy(f'"{kind}"'), name="run.toml")


def test_steps_whose_partners_cannot_be_compared(module: Any) -> None:
    module(CLASS.format("pass") + "    partner = {}\n")
    with pytest.raises(PolicyError, match="unhashable"):
        Policy.from_toml(policy('["mean", "their_splits:Mine"]'), name="run.toml")


def test_an_interruption_is_no_mistake_of_the_policy(module: Any) -> None:
    module("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Policy.from_toml(policy())
