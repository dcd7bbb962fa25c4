"""Rules that ask what quantizing a product gains on a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sympy

from metis_compile import Policy, PolicyError
from metis_compile.cost_model import gain
from metis_compile.policy import Query

RECIPE = '[recipe.low]\nweight = "nvfp4"\nactivation = "fp8"\ngradient = "high"\n'
LARGE = Query(
    module="a", block=None, op="linear", gemm="fprop", operand="weight", dtype="bfloat16", has_weight=True,
    m=8192, n=4096, k=4096,
)  # fmt: skip


def policy(when: str, recipe: str = "low") -> Policy:
    return Policy.from_toml(f'{RECIPE}[[rule]]\nrecipe = "{recipe}"\nwhen = "{when}"\n', name="run.toml")


def applies(when: str, query: Query, recipe: str = "low") -> bool:
    return policy(when, recipe).decide(query).index == 0


def test_large_products_gain_and_small_ones_do_not() -> None:
    assert applies("gain('b200') > 1.0", LARGE)
    assert not applies("gain('b200') > 1.0", replace(LARGE, m=64, n=64, k=64))
    assert applies("gain('b200') > 1.0 and k >= 4096", LARGE)
    assert not applies("not gain('b200') > 1.0", LARGE)
    assert applies("1 < gain('b200') < 4", LARGE)
    assert applies("gain('h100', 'fp8') > gain('h100', 'nvfp4')", LARGE)


def test_it_is_of_the_format_that_the_recipe_gives_the_operand() -> None:
    low, high = sorted(gain("b200", name, 8192, 4096, 4096) for name in ("nvfp4", "fp8"))
    between = f"gain('b200') > {(low + high) / 2:.3f}"
    assert applies(between, LARGE), "nvfp4"
    assert not applies(between, replace(LARGE, operand="activation")), "fp8"
    assert applies(between, replace(LARGE, operand="gradient")), "left high: of the weight's"


def test_a_recipe_that_quantizes_nothing_needs_a_format() -> None:
    assert applies("gain('b200', 'nvfp4') < 1", replace(LARGE, m=64, n=64, k=64), "high")
    with pytest.raises(PolicyError, match=r"^run\.toml:7: rule 1, when: .*quantizes nothing; name a format"):
        policy("gain('b200') < 1", "high")


def test_symbolic_sizes_are_taken_at_what_they_stand_for_and_make_no_guard() -> None:
    tokens = sympy.Symbol("s0", integer=True, positive=True)
    for m in (8192, 16):
        symbolic = replace(LARGE, m=tokens, hints=(m, 4096, 4096))
        assert applies("gain('b200') > 1.0", symbolic) is applies("gain('b200') > 1.0", replace(LARGE, m=m))
    asked: list[sympy.Basic] = []
    mixed = replace(LARGE, m=tokens, hints=(8192, 4096, 4096))
    policy("gain('b200') > 1.0 and m % 16 == 0").decide(mixed, lambda left: not asked.append(left))
    assert asked == [sympy.Eq(sympy.Mod(tokens, 16), 0)]
    with pytest.raises(PolicyError, match="give hints"):
        applies("gain('b200') > 1.0", replace(LARGE, m=tokens))


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (
            "gain('b20') > 1.0",
            'a gain whose device must be one of "h100", "h200", "b200", "b300", "rtx5090", got "b20"',
        ),
        ("gain('b20') > 1.0", 'did you mean "b200"?'),
        ("gain('mine.toml') > 1.0", "a gain whose device must be one of"),
        ("gain('b200', 'nvfp5') > 1.0", 'did you mean "nvfp4"?'),
        ("gain(b200) > 1.0", "a gain whose device is b200; write it in quotes"),
        ("gain('b200')", "by itself; compare it with a number: gain('b200') > 1.0"),
        ("2 * gain('b200') > 1", "by itself"),
        ("gain('b200') > m", 'compares a gain with "m"; it is compared with numbers'),
        ("gain('b200') > True", 'compares a gain with "True"'),
        ("gain() > 1", "a gain takes a device and, if need be, a format"),
        ("gain('b200', format='fp8') > 1", "a gain takes a device"),
        ("gian('b200') > 1", 'which is not allowed; did you mean "gain"?'),
        ("k > 1.5", 'has "1.5", which is not allowed'),
    ],
)
def test_a_mistake_names_the_file_and_the_line(tmp_path: Path, when: str, said: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f'{RECIPE}[[rule]]\nrecipe = "low"\nwhen = "{when}"\n')
    with pytest.raises(PolicyError) as error:
        Policy.load(path)
    assert (error.value.line, error.value.key) == (7, "rule 1, when")
    assert said in str(error.value)


def test_it_is_written_and_read_back() -> None:
    asked = policy("gain( 'b200' )>1.0 and k>=16")
    assert asked.rules[0].when == "gain('b200') > 1.0 and k >= 16"
    assert Policy.from_toml(asked.to_toml()) == asked
