"""to_toml, equality, hash and digest: a policy is what it means."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metis_compile.conditioning import PARTNERS, Chain, Mean, Spectral
from metis_compile.numerics.formats import FORMATS
from metis_compile.policy import DTYPES, GEMMS, KINDS, OPERANDS, OPS, Policy, Recipe, Rule, Treatment, presets

_partners = st.sampled_from(PARTNERS)
_factors = st.sampled_from(["high", "bfloat16", "nvfp4", "mxfp8", "nvfp4 1x16 stochastic none"])


@st.composite
def splits(draw: st.DrawFn) -> object:
    partner = draw(_partners)
    mean = Mean(factors=draw(_factors), fold=draw(st.booleans()), partner=partner)
    spectral = Spectral(
        rank=draw(st.sampled_from([1, 8, 0.015, "auto"])),
        sample=draw(st.floats(0.001, 1)),
        sketch=draw(st.sampled_from(["gaussian", "signs"])),
        factors=draw(_factors),
        partner=partner,
        refresh=draw(st.integers(0, 9)),
        track=draw(st.booleans()),
        adaptive_rate=draw(st.booleans()),
    )
    return draw(st.sampled_from([None, mean, spectral, Chain(steps=(mean, spectral))]))


@st.composite
def treatments(draw: st.DrawFn) -> Treatment:
    name = draw(st.sampled_from(["high", *FORMATS]))
    if name == "high":
        return Treatment(format="high")
    format = FORMATS[name]
    rounding = draw(st.sampled_from(format.roundings))
    stochastic = rounding == "stochastic"
    return Treatment(
        format=name,
        block=draw(st.none() | st.sampled_from(format.blocks)),
        rounding=draw(st.sampled_from([None, "nearest"])) if rounding == "nearest" else rounding,
        guard=draw(st.none() | st.sampled_from(format.guards)) if stochastic else None,
        scale_mode=draw(st.none() | st.sampled_from(format.scale_modes)) if format.scale_modes else None,
        four_over_six=draw(st.sampled_from([None, False, True])) if format.selects(rounding) else None,
        split=draw(splits()),
        hadamard=draw(st.sampled_from([None, False, True, "fixed", "fresh"])),
    )


def some(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...] | None]:
    return st.none() | st.lists(st.sampled_from(names), min_size=1, max_size=4).map(tuple)


_names = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True).filter(lambda name: name != "high")
_globs = st.lists(st.sampled_from(["*", ".", "a", "'", '"', "{a,b}", "{0..3}", "é", "#", "="]), min_size=1)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    reserved = ("extends", *OPERANDS)
    names = draw(st.lists(_names.filter(lambda name: name not in reserved), unique=True, max_size=4))
    recipes = [Recipe(name=name, **{key: draw(treatments()) for key in OPERANDS}) for name in names]
    rule = st.builds(
        Rule,
        recipe=st.sampled_from(["high", *names]),
        module=st.none() | st.lists(_globs.map("".join), min_size=1, max_size=3).map(tuple),
        kind=some(KINDS),
        blocks=some(("first 2", "last 4", "3-5", "7")),
        op=some(OPS),
        gemm=some(GEMMS),
        operand=some(OPERANDS),
        dtype=some(DTYPES),
        has_weight=st.none() | st.booleans(),
        when=st.none() | st.sampled_from(["k >= 256 and n % 16 == 0", "16 <= k < 4096", "not m == n or k // 2 > 3"]),
    )
    return Policy(name="made", recipes=tuple(recipes), rules=tuple(draw(st.lists(rule, max_size=4))))


@settings(deadline=None, max_examples=60)
@given(policies())
def test_any_policy_comes_back_from_its_toml(policy: Policy) -> None:
    back = Policy.from_toml(policy.to_toml())
    assert back == policy
    assert hash(back) == hash(policy)
    assert back.digest() == policy.digest()
    assert back.to_toml() == policy.to_toml()


@pytest.mark.parametrize("name", presets())
def test_a_preset_comes_back_from_its_toml(name: str) -> None:
    policy = Policy.load(name)
    assert Policy.from_toml(policy.to_toml()) == policy
    assert Policy.from_toml(f"extends = '{name}'").digest() == policy.digest()


def test_the_text_is_readable_and_says_where_rules_came_from() -> None:
    text = Policy.from_toml(
        """
        extends = "high"
        [recipe.main]
        weight = "high"
        activation = "mxfp8"
        gradient = { format = "nvfp4", rounding = "stochastic" }
        [recipe]
        heads = "high"
        [[rule]]
        module = "*.lm_head"
        gemm = ["dgrad", "fprop"]
        when = "k>4"
        recipe = "main"
        """,
        name="run.toml",
    ).to_toml()
    assert (
        text
        == """\
[recipe]
heads = "high"

[recipe.main]
weight = "high"
activation = {format = "mxfp8", block = "1x32", rounding = "nearest", scale_mode = "floor"}
gradient = {format = "nvfp4", block = "1x16", rounding = "stochastic", guard = "round_up"}

[[rule]]
module = "*.lm_head"
gemm = ["fprop", "dgrad"]
when = "k > 4"
recipe = "main"

[[rule]]
# from high.toml, rule 1
recipe = "high"
"""
    )


@settings(deadline=None, max_examples=60)
@given(policies(), policies())
def test_equality_hash_and_digest_agree(a: Policy, b: Policy) -> None:
    assert (a == b) == (a.digest() == b.digest())
    if a == b:
        assert hash(a) == hash(b)


BASE = """
[recipe.a]
weight = { format = "nvfp4", block = "16x16" }
activation = "nvfp4"
gradient = { format = "nvfp4", rounding = "stochastic" }

[[rule]]
module = "*.q"
blocks = "last 2"
op = "linear"
gemm = "fprop"
operand = "weight"
dtype = "bfloat16"
has_weight = true
when = "k >= 256"
recipe = "a"

[[rule]]
recipe = "high"
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('weight = { format = "nvfp4", block = "16x16" }', 'weight = { format = "nvfp4", block = "1x16" }'),
        ('activation = "nvfp4"', 'activation = "mxfp4"'),
        ('activation = "nvfp4"', 'activation = { format = "nvfp4", rounding = "stochastic" }'),
        ('rounding = "stochastic" }', 'rounding = "eden" }'),
        ('rounding = "stochastic" }', 'rounding = "stochastic", guard = "17/16" }'),
        ('rounding = "stochastic" }', 'rounding = "stochastic", four_over_six = true }'),
        ('rounding = "stochastic" }', 'rounding = "stochastic", hadamard = true }'),
        ('block = "16x16" }', 'block = "16x16", hold_amax = 50 }'),
        ('block = "16x16" }', 'block = "16x16", split = "mean" }'),
        ('block = "16x16" }', 'block = "16x16", split = ["mean", { kind = "spectral", rank = 8 }] }'),
        ('"*.q"', '"*.k"'),
        ('"*.q"', '["*.q", "*.k"]'),
        ('module = "*.q"\n', ""),
        ('"last 2"', '"last 3"'),
        ('"linear"', '"mm"'),
        ('"fprop"', '"dgrad"'),
        ('"fprop"', '["fprop", "dgrad"]'),
        ('operand = "weight"', 'operand = "gradient"'),
        ('"bfloat16"', '"float16"'),
        ("has_weight = true", "has_weight = false"),
        ("has_weight = true\n", ""),
        ("k >= 256", "k > 256"),
        ('recipe = "a"', 'recipe = "high"'),
        ('recipe = "a"\n\n[[rule]]\nrecipe = "high"', 'recipe = "a"'),
    ],
)
def test_a_change_of_meaning_changes_equality_and_digest(old: str, new: str) -> None:
    assert old in BASE
    before, after = Policy.from_toml(BASE), Policy.from_toml(BASE.replace(old, new))
    assert before != after
    assert before.digest() != after.digest()


def test_the_order_of_rules_counts() -> None:
    policy = Policy.from_toml(BASE)
    assert replace(policy, rules=policy.rules[::-1]) != policy
    assert replace(policy, rules=policy.rules[::-1]).digest() != policy.digest()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "# a comment\n" + text.replace("\n\n", "\n\n\n# another\n"),
        lambda text: text.replace('"nvfp4"\n', '{ format = "nvfp4", block = "1x16" }\n'),
        lambda text: text.replace('"fprop"', '["fprop"]').replace("k >= 256", "(k>=256)"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"16x16" }', '"16x16", four_over_six = false, hadamard = false }'),
        lambda text: text.replace('"16x16" }', '"16x16", hold_amax = 1 }'),
    ],
)
def test_comments_spelling_and_names_do_not_count(change: Callable[[str], str]) -> None:
    before, after = Policy.from_toml(BASE, name="a.toml"), Policy.from_toml(change(BASE), name="b.toml")
    assert before == after
    assert hash(before) == hash(after)
    assert before.digest() == after.digest()


def test_another_process_has_the_same_digest_and_needs_no_inductor() -> None:
    code = (
        "import sys; from metis_compile.policy import Policy; print(Policy.load('nvfp4').digest()); "
        "print('torch._inductor' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [Policy.load("nvfp4").digest(), "False"]


def test_a_policy_can_be_pickled_copied_and_used_as_a_key() -> None:
    policy = Policy.load("nvfp4")
    for same in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)):
        assert same == policy
        assert same.rules[0].label == policy.rules[0].label
    assert {policy: 1}[Policy.load("nvfp4")] == 1
    assert policy != "nvfp4"


def test_written_to_a_file_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(Policy.load("mxfp8").to_toml())
    assert Policy.load(path) == Policy.load("mxfp8")
