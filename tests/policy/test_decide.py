from collections.abc import Callable

import pytest
import sympy

from metis_compile.policy import Policy, PolicyError, Query, Recipe, Rule, Treatment

TEXT = """
[[rule]]
module = "*.lm_head"
recipe = "high"

[[rule]]
blocks = ["first 1", "last 2"]
gemm = "fprop"
recipe = "mxfp8"

[[rule]]
operand = "gradient"
when = "k >= 512"
recipe = "fp8"

[[rule]]
op = ["linear", "mm"]
has_weight = true
dtype = "bfloat16"
recipe = "nvfp4"
"""


@pytest.fixture
def policy() -> Policy:
    return Policy.from_toml(TEXT, name="run.toml")


@pytest.mark.parametrize(
    ("changes", "index", "treatment"),
    [
        ({"module": "lm_head"}, 0, "high"),
        ({"module": "model.lm_head", "block": (7, 8)}, 0, "high"),  # the first match, not the closest
        ({"block": (0, 8)}, 1, "mxfp8 1x32 nearest floor"),
        ({"block": (6, 8)}, 1, "mxfp8 1x32 nearest floor"),
        ({"block": (6, 8), "gemm": "dgrad"}, 3, "nvfp4 1x16 nearest"),
        ({"block": None}, 3, "nvfp4 1x16 nearest"),
        ({}, 3, "nvfp4 1x16 nearest"),
        ({"operand": "weight"}, 3, "nvfp4 1x16 nearest"),
        ({"operand": "gradient", "gemm": "wgrad"}, 3, "nvfp4 1x16 stochastic round_up"),
        ({"operand": "gradient", "gemm": "wgrad", "k": 512}, 2, "fp8_e5m2 tensor nearest"),
        ({"k": 512}, 3, "nvfp4 1x16 nearest"),  # the rule before is for the gradient only
        ({"op": "bmm"}, None, "high"),
        ({"has_weight": False}, None, "high"),
        ({"dtype": "float32"}, None, "high"),
    ],
    ids=str,
)
def test_the_first_rule_that_matches_decides(
    policy: Policy, query: Callable[..., Query], changes: dict[str, object], index: int | None, treatment: str
) -> None:
    decision = policy.decide(query(**changes))
    assert decision.index == index
    assert str(decision.treatment) == treatment
    if index is not None:
        assert decision.rule == policy.rules[index].label
        assert decision.recipe == policy.rules[index].recipe


def test_no_rule_leaves_the_operand_high_and_says_so(policy: Policy, query: Callable[..., Query]) -> None:
    decision = policy.decide(query(op="einsum"))
    assert decision.treatment == Treatment(format="high")
    assert decision.treatment.spec is None
    assert (decision.recipe, decision.rule, decision.index) == ("high", "no rule of run.toml matched", None)


def test_the_three_operands_of_a_recipe(query: Callable[..., Query]) -> None:
    treatments = {
        "weight": Treatment(format="nvfp4", block="16x16"),
        "activation": Treatment(format="mxfp8"),
        "gradient": Treatment(format="fp8_e5m2"),
    }
    policy = Policy(recipes=(Recipe(name="a", **treatments),), rules=(Rule(recipe="a"),))
    for operand, treatment in treatments.items():
        assert policy.decide(query(operand=operand)).treatment == treatment
    with pytest.raises(ValueError, match="operand must be one of"):
        policy.decide(query(operand="bias"))


def test_labels_name_the_file_the_place_and_what_matched(policy: Policy) -> None:
    assert [rule.label for rule in policy.rules] == [
        "run.toml rule 1 (module=*.lm_head)",
        "run.toml rule 2 (blocks=first 1|last 2, gemm=fprop)",
        "run.toml rule 3 (operand=gradient, when=k >= 512)",
        "run.toml rule 4 (op=linear|mm, dtype=bfloat16, has_weight=true)",
    ]
    built = Policy(name="mine", rules=(Rule(recipe="high"), Rule(recipe="high", module=tuple("abcdef"))))
    assert [rule.label for rule in built.rules] == ["mine rule 1 (any)", "mine rule 2 (module=a|b|c|+3 more)"]


def test_a_symbolic_size_is_asked_about_only_where_the_rest_matches(
    policy: Policy, query: Callable[..., Query]
) -> None:
    s0 = sympy.Symbol("s0", integer=True, positive=True)
    asked: list[sympy.Basic] = []

    def decide(answer: bool) -> Callable[[sympy.Basic], bool]:
        def answering(condition: sympy.Basic) -> bool:
            asked.append(condition)
            return answer

        return answering

    gradient = query(operand="gradient", gemm="dgrad", k=s0)
    assert policy.decide(gradient, decide(True)).index == 2
    assert policy.decide(gradient, decide(False)).index == 3
    assert asked == [sympy.Ge(s0, 512)] * 2
    asked.clear()
    assert policy.decide(query(operand="weight", k=s0), decide(True)).index == 3
    assert policy.decide(query(operand="gradient", gemm="dgrad", k=s0 + 600), decide(True)).index == 2
    assert policy.decide(query(operand="gradient", module="lm_head", k=s0), decide(True)).index == 0
    assert asked == []
    with pytest.raises(PolicyError, match=r'run.toml rule 3 .*, when: "k >= 512" is not decided .*s0 >= 512'):
        policy.decide(gradient)


def test_a_division_by_zero_names_the_rule(query: Callable[..., Query]) -> None:
    policy = Policy.from_toml("[[rule]]\nrecipe = 'high'\nwhen = 'k % (n - 16) == 0'", name="run.toml")
    with pytest.raises(PolicyError, match=r"run.toml rule 1 .*, when: .* divides by zero where .*n = 16"):
        policy.decide(query(n=16))


def test_rules_that_decided_nothing_are_told(query: Callable[..., Query]) -> None:
    policy = Policy.from_toml("extends = 'nvfp4'\n" + TEXT, name="run.toml")
    counts: dict[int, int] = {}
    for changes in ({}, {"module": "lm_head", "kind": "head"}, {"has_weight": False}):
        index = policy.decide(query(**changes)).index
        assert index is not None
        counts[index] = counts.get(index, 0) + 1
    unused = policy.unused(counts)
    assert [(rule.source, rule.number) for rule in unused] == [
        ("run.toml", 2),
        ("run.toml", 3),
        ("base.toml", 1),
        ("base.toml", 2),
        ("base.toml", 4),
        ("nvfp4.toml", 1),
    ]
    assert policy.unused({}) == list(policy.rules)
    assert policy.unused(dict.fromkeys(range(len(policy.rules)), 1)) == []
