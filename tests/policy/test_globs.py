import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metis_compile.policy import PolicyError
from metis_compile.policy.globs import compile_glob


@pytest.mark.parametrize(
    ("glob", "matched", "not_matched"),
    [
        ("lm_head", ["lm_head"], ["model.lm_head", "lm_head2", "LM_HEAD", ""]),
        ("*", ["", "a", "a.b.c"], []),
        ("", [""], ["a"]),  # ops of the model's own forward, outside of any submodule
        ("*.lm_head", ["lm_head", "model.lm_head", "a.b.lm_head"], ["xlm_head", "lm_head.decoder"]),
        ("*.gate", ["gate", "layers.0.mlp.gate"], ["layers.0.mlp.gate_proj", "mlp.agate"]),
        ("layers.*", ["layers.0", "layers.0.attn.q", "layers."], ["layers", "model.layers.0"]),
        ("*attn*", ["attn", "a.self_attn.q"], ["mlp"]),
        ("layers.{0,1,30,31}.*", ["layers.0.q", "layers.31.q"], ["layers.3.q", "layers.01.q", "layers.310.q"]),
        ("layers.{0..3}.q", ["layers.0.q", "layers.3.q"], ["layers.4.q", "layers.q", "layers.03.q"]),
        ("layers.{0..1, 9..11}.q", ["layers.1.q", "layers.10.q"], ["layers.2.q", "layers.8.q", "layers.12.q"]),
        ("{q,k,v}_proj", ["q_proj", "v_proj"], ["o_proj", "qk_proj"]),
        ("*.{q,k*}.weight", ["q.weight", "a.key.weight"], ["a.v.weight"]),
        ("{5..5}", ["5"], ["4", "6"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a-b_c.0", ["a-b_c.0"], ["a-b_c.1"]),
        ("*.*", ["a.b", "a.", ".", "a"], []),  # the leading "*." also matches nothing
        ("x*.y", ["x.y", "xa.b.y"], ["y", "xy"]),
    ],
)
def test_glob_matches_the_whole_name(glob: str, matched: list[str], not_matched: list[str]) -> None:
    pattern = compile_glob(glob)
    assert [name for name in matched if not pattern.fullmatch(name)] == []
    assert [name for name in not_matched if pattern.fullmatch(name)] == []


@pytest.mark.parametrize(
    ("glob", "said"),
    [
        ("a.{b", "has a { that is not closed"),
        ("a.b}", "has a } without its {"),
        ("{a,{b,c}}", "braces inside braces"),
        ("{a,}", "empty alternative"),
        ("{}", "empty alternative"),
        ("{3..1}", "3..1, which runs backwards"),
        ("{a..c}", "not a range of whole numbers such as 0..3"),
        ("{0..}", "not a range"),
        ("{-1..3}", "not a range"),
        ("{0..99999999999}", "more than 10000 numbers"),
        ("layers.[0-3]", 'has "["'),
        ("layers.?", 'has "?"'),
        ("a,b", 'has ","'),
        ("a b", 'has " "'),
        ("^a$", 'has "^"'),
        ("a\n", r'has "\n"'),
    ],
)
def test_malformed_glob_is_named_with_what_is_allowed(glob: str, said: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(said)) as caught:
        compile_glob(glob)
    assert "a module glob holds a dotted name with *, {a,b} or {0..3}" in str(caught.value)
    assert caught.value.value == glob


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_characters="*{}?[]()|^$\\+/,", exclude_categories=("Z", "C")), min_size=1))
def test_a_glob_without_signs_matches_itself_only(name: str) -> None:
    assert compile_glob(name).fullmatch(name)
    assert not compile_glob(name).fullmatch(name + "x")
    assert not compile_glob(name).fullmatch("x" + name)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 400))
def test_a_range_holds_both_ends_and_nothing_outside(first: int, length: int, number: int) -> None:
    pattern = compile_glob(f"layers.{{{first}..{first + length}}}.q")
    assert bool(pattern.fullmatch(f"layers.{number}.q")) == (first <= number <= first + length)
