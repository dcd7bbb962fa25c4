import re

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from metis_compile.policy import PolicyError
from metis_compile.policy.shape_conditions import SYMBOLS, parse_condition

SIZES = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("text", "m", "n", "k", "result"),
    [
        ("k >= 256 and n % 16 == 0", 1, 32, 256, True),
        ("k >= 256 and n % 16 == 0", 1, 33, 256, False),
        ("k >= 256 and n % 16 == 0", 1, 32, 255, False),
        ("16 <= k < 4096", 1, 1, 16, True),
        ("16 <= k < 4096", 1, 1, 4096, False),
        ("m != n", 3, 3, 1, False),
        ("not (m == n or k > 8)", 3, 4, 8, True),
        ("not (m == n or k > 8)", 3, 4, 9, False),
        ("m * n * k > 1000 * 1000", 100, 100, 100, False),
        ("k // 16 * 16 == k", 1, 1, 49, False),
        ("k // 7 == 7", 1, 1, 49, True),
        ("-m + n >= -2", 3, 1, 1, True),
        ("(m + n) % k == 0 or m - 1 == 0", 5, 7, 6, True),
        ("m == 1 or k % (m - 1) == 0", 1, 1, 7, True),  # decided before the division by zero
        ("m == 1 or k % (m - 1) == 0", 3, 1, 7, False),
        ("m > 1 and k % (m - 1) == 0", 1, 1, 7, False),
        ("k >= +1", 1, 1, 1, True),
        ("k == 0", 1, 1, 0, True),
    ],
)
def test_whole_numbers_decide_a_condition(text: str, m: int, n: int, k: int, result: bool) -> None:
    assert parse_condition(text).evaluate({"m": m, "n": n, "k": k}) is result


_numbers = st.recursive(
    st.sampled_from(["m", "n", "k", "3", "16"]),
    lambda part: (
        st.tuples(part, st.sampled_from(["+", "-", "*"]), part).map(lambda t: f"({' '.join(t)})")
        | st.tuples(part, st.sampled_from(["//", "%"]), st.sampled_from(["7", "n", "16"])).map(
            lambda t: f"({' '.join(t)})"
        )
    ),
    max_leaves=4,
)
_relations = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
_conditions = st.recursive(
    st.tuples(_numbers, _relations, _numbers, _relations, _numbers).map(" ".join)
    | st.tuples(_numbers, _relations, _numbers).map(" ".join),
    lambda part: (
        st.tuples(part, st.sampled_from(["and", "or"]), part).map(lambda t: f"({' '.join(t)})")
        | part.map(lambda text: f"not ({text})")
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=60)
@given(_conditions, SIZES, SIZES, SIZES)
def test_a_condition_means_what_python_says(text: str, m: int, n: int, k: int) -> None:
    expected = eval(text, {"m": m, "n": n, "k": k})
    assert parse_condition(text).evaluate({"m": m, "n": n, "k": k}) is expected


@settings(deadline=None, max_examples=60)
@given(_conditions, SIZES, SIZES, SIZES)
def test_symbols_put_in_late_give_the_same(text: str, m: int, n: int, k: int) -> None:
    s0, s1 = sympy.symbols("s0 s1", integer=True, positive=True)
    left = parse_condition(text).evaluate({"m": s0, "n": n, "k": s1})
    if not isinstance(left, bool):
        left = bool(left.subs({s0: m, s1: k}))
    assert left is eval(text, {"m": m, "n": n, "k": k})


def test_a_symbolic_size_is_left_open_or_decided_by_what_is_known_of_it() -> None:
    s0 = sympy.Symbol("s0", integer=True, positive=True)
    condition = parse_condition("k >= 256 and n % 16 == 0")
    assert condition.evaluate({"m": s0, "n": 32, "k": s0}) == sympy.Ge(s0, 256)
    assert condition.evaluate({"m": s0, "n": 33, "k": s0}) is False
    assert condition.evaluate({"m": s0, "n": 32 * s0, "k": 512}) is True  # a multiple of 32, whatever s0 is
    assert parse_condition("k >= 1").evaluate({"m": 1, "n": 1, "k": s0}) is True


def test_the_expression_is_a_sympy_boolean_over_m_n_k() -> None:
    m, k = SYMBOLS["m"], SYMBOLS["k"]
    assert parse_condition("m < k").expression == sympy.Lt(m, k)
    assert parse_condition("k > 4 or m == 2").expression == sympy.Or(sympy.Gt(k, 4), sympy.Eq(m, 2))


def test_a_shape_environment_of_torch_decides_and_guards() -> None:
    environment = ShapeEnv()
    size = environment.create_symbol(49, source=ConstantSource("x"), dynamic_dim=DimDynamic.DYNAMIC)
    left = parse_condition("k // 49 >= 1 and k % 7 == 0").evaluate({"m": 1, "n": 1, "k": size})
    assert not isinstance(left, bool)
    assert environment.evaluate_expr(left)
    from torch.utils._sympy.printers import PythonPrinter

    guard = " and ".join(f"({PythonPrinter().doprint(guard.expr)})" for guard in environment.guards)
    holds = {value: eval(guard, {str(size): value}) for value in (42, 48, 49, 50, 56)}
    assert holds == {42: False, 48: False, 49: True, 50: False, 56: True}  # no floating point on the way


def test_canonical_text_hides_spacing_only() -> None:
    assert parse_condition("k>=256  and\n (n%16==0)").text == "k >= 256 and n % 16 == 0"
    assert parse_condition("(k + 1) * 2 > 4").text != parse_condition("k + 1 * 2 > 4").text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("K > 4", 'unknown name "K"; did you mean "k"?'),
        ("tokens > 4", 'unknown name "tokens"'),
        ("k", 'uses the number "k" as a truth value'),
        ("k > 4 and n % 16", 'uses the number "n % 16" as a truth value; compare it: n % 16 == 0'),
        ("not k", 'uses the number "k" as a truth value'),
        ("(k > 4) + 1 > 2", 'uses "k > 4" as a number'),
        ("(k > 4) == (n > 4)", 'uses "k > 4" as a number'),
        ("k > 4 && n > 4", "(write and, or, not)"),
        ("k > 4 & n > 4", 'has "4 & n", an arithmetic that is not allowed'),
        ("k / 2 > 4", "whole-number division is //"),
        ("k ** 2 > 4", "an arithmetic that is not allowed"),
        ("k > 4.5", 'has "4.5", which is not allowed'),
        ("k > 'a'", "which is not allowed"),
        ("True", "has True; leave the condition out instead"),
        ("k in (1, 2)", "compares with something other than"),
        ("k is 4", "compares with something other than"),
        ("k > (4, 5)", "which is not allowed"),
        ("min(m, n) > 4", "which is not allowed"),
        ("__import__('os').system('true') == 0", "which is not allowed"),
        ("k.real > 4", "which is not allowed"),
        ("(lambda: k > 4)()", "which is not allowed"),
        ("k if k > 4 else n", "which is not allowed"),
        ("~k > 4", "which is not allowed"),
        ("(k := 4) > 3", "which is not allowed"),
        ("k >", "is not an expression"),
        ("", "is not an expression"),
        ("k > 4)", "is not an expression"),
        ("k > 4) or (m > 2", "is not an expression"),
        ("k = 4", "is not an expression"),
        ("k % 0 == 0", "divides by zero"),
        ("k // (m - m) > 0", "divides by zero"),
        ("k > \0", "is not an expression"),
        ("k > " + "(" * 250 + "1" + ")" * 250, "is not an expression"),
        ("k > " + "1+" * 600 + "1", "is longer than 1000 characters"),
        ("k > " + "-" * 900 + "1", "is nested more than 64 deep"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(said)) as caught:
        parse_condition(text)
    assert "m, n, k, whole numbers, + - * // %, comparisons, and, or, not" in str(caught.value)
    assert caught.value.value == text


def test_division_by_zero_that_only_the_sizes_show() -> None:
    with pytest.raises(PolicyError, match=r"divides by zero where m = 3, n = 3, k = 5"):
        parse_condition("k % (m - n) == 0").evaluate({"m": 3, "n": 3, "k": 5})
