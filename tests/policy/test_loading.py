from pathlib import Path

import pytest

from metis_compile.policy import Policy, PolicyError, Recipe, Rule, Treatment


def test_the_sketch_of_a_policy_file() -> None:
    policy = Policy.from_toml("""
        extends = "nvfp4"

        [recipe.w4a4g4]
        weight     = { format = "nvfp4", block = "16x16" }
        activation = { format = "nvfp4" }
        gradient   = { format = "nvfp4", rounding = "stochastic" }

        [[rule]]
        module = "*.lm_head"
        recipe = "high"

        [[rule]]
        module = "layers.{0,1,30,31}.*"
        gemm   = ["fprop", "dgrad"]
        recipe = "fp8"

        [[rule]]
        op     = ["linear", "bmm"]
        recipe = "w4a4g4"
    """)
    assert policy.rules[:3] == (
        Rule(recipe="high", module=("*.lm_head",)),
        Rule(recipe="fp8", module=("layers.{0,1,30,31}.*",), gemm=("fprop", "dgrad")),
        Rule(recipe="w4a4g4", op=("linear", "bmm")),
    )
    assert policy.rules[3:] == Policy.load("nvfp4").rules
    assert policy.recipe("w4a4g4") == Recipe(
        name="w4a4g4",
        weight=Treatment(format="nvfp4", block="16x16"),
        activation=Treatment(format="nvfp4"),
        gradient=Treatment(format="nvfp4", rounding="stochastic"),
    )
    assert policy.recipe("fp8") == Policy.load("fp8").recipe("fp8")  # a preset's recipe, known by its name


def test_load_takes_a_name_a_path_or_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[[rule]]\nrecipe = 'mxfp8'\n"
    for name in ("run.toml", "nvfp4", "policy"):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    policy = Policy.from_toml(text)
    assert Policy.load("run.toml") == Policy.load(tmp_path / "run.toml") == Policy.load("policy") == policy
    assert Policy.load("nvfp4") != policy  # the preset, though there is such a file
    assert Policy.load("./nvfp4") == Policy.load(Path("nvfp4")) == policy
    assert Policy.load(policy) is policy
    assert (Policy.load("run.toml").name, Policy.load("run.toml").source) == ("run.toml", "run.toml")
    assert (policy.name, policy.source) == ("<text>", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Policy.load("~/run.toml") == policy


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes("\ufeff[[rule]]\r\nrecipe = 'high'\r\n".encode())
    assert Policy.load(tmp_path / "run.toml").rules == (Rule(recipe="high"),)


def test_extends_puts_own_rules_first_and_replaces_recipes(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "grand.toml").write_text("[[rule]]\nrecipe = 'main'\n[recipe]\nmain = 'fp8'\n")
    (tmp_path / "base" / "parent.toml").write_text("extends = 'grand.toml'\n[[rule]]\nop = 'mm'\nrecipe = 'main'\n")
    (tmp_path / "run.toml").write_text(
        "extends = 'base/parent.toml'\n[[rule]]\nop = 'bmm'\nrecipe = 'high'\n[recipe]\nmain = 'mxfp4'\n"
    )
    policy = Policy.load(tmp_path / "run.toml")
    assert policy.rules == (
        Rule(recipe="high", op="bmm"),  # type: ignore[arg-type]
        Rule(recipe="main", op="mm"),  # type: ignore[arg-type]
        Rule(recipe="main"),
    )
    assert [(rule.source, rule.number) for rule in policy.rules] == [
        ("run.toml", 1),
        ("parent.toml", 1),
        ("grand.toml", 1),
    ]
    assert policy.recipe("main").weight == Treatment(format="mxfp4")
    assert Policy.load(tmp_path / "base" / "parent.toml").recipe("main").weight == Treatment(format="fp8")


def test_rules_of_a_file_that_says_so_come_before_those_of_the_one_that_extends_it(tmp_path: Path) -> None:
    """And behind those of a file that extends that one in turn."""
    (tmp_path / "base.toml").write_text("rules_first = true\n[[rule]]\nop = 'mm'\nrecipe = 'high'\n")
    (tmp_path / "middle.toml").write_text("extends = 'base.toml'\n[[rule]]\nrecipe = 'fp8'\n")
    (tmp_path / "run.toml").write_text("extends = 'middle.toml'\n[[rule]]\nop = 'bmm'\nrecipe = 'mxfp4'\n")
    labels = [rule.label for rule in Policy.load(tmp_path / "run.toml").rules]
    assert labels == ["run.toml rule 1 (op=bmm)", "base.toml rule 1 (op=mm)", "middle.toml rule 1 (any)"]
    with pytest.raises(PolicyError, match=r"rules_first: must be true or false, got 1"):
        Policy.from_toml("rules_first = 1")


def test_recipes_of_what_presets_extend_can_be_named() -> None:
    assert Policy.from_toml("[[rule]]\nrecipe = 'attention'").recipe("attention").weight.format == "high"


def test_a_file_may_have_the_name_of_the_preset_it_extends(tmp_path: Path) -> None:
    (tmp_path / "nvfp4.toml").write_text("extends = 'nvfp4'\n")
    assert Policy.load(tmp_path / "nvfp4.toml") == Policy.load("nvfp4")


def test_a_recipe_takes_left_out_operands_from_the_one_it_extends() -> None:
    policy = Policy.from_toml("""
        [recipe.late]                 # order does not matter
        extends = "early"
        weight  = "high"
        [recipe.early]
        extends    = "nvfp4"
        activation = { format = "mxfp8", scale_mode = "even" }
        [recipe]
        same = "late"
    """)
    nvfp4 = Policy.load("nvfp4").recipe("nvfp4")
    late = policy.recipe("late")
    assert late.weight == Treatment(format="high")
    assert late.activation == Treatment(format="mxfp8", scale_mode="even")
    assert late.gradient == nvfp4.gradient
    assert policy.recipe("same").treatments == late.treatments


def test_a_treatment_is_taken_whole_not_key_by_key() -> None:
    policy = Policy.from_toml("[recipe.a]\nextends = 'nvfp4'\ngradient = { format = 'nvfp4' }")
    assert policy.recipe("a").gradient.rounding == "nearest"  # not the stochastic of what it extends


def test_a_recipe_that_extends_its_own_name_means_the_one_it_replaces() -> None:
    policy = Policy.from_toml("extends = 'nvfp4'\n[recipe.nvfp4]\nextends = 'nvfp4'\nweight = 'mxfp8'")
    preset = Policy.load("nvfp4").recipe("nvfp4")
    assert policy.recipe("nvfp4").weight == Treatment(format="mxfp8")
    assert policy.recipe("nvfp4").gradient == preset.gradient


@pytest.mark.parametrize(
    "text",
    [
        "[recipe]\nheads = 'fp8'",
        "recipe.heads = 'fp8'",
        "[recipe.heads]\nextends = 'fp8'",
    ],
)
def test_three_ways_to_name_another_recipe(text: str) -> None:
    assert Policy.from_toml(text).recipe("heads").treatments == Policy.load("fp8").recipe("fp8").treatments


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("'nvfp4'", "{ format = 'nvfp4', block = '1x16', rounding = 'nearest' }"),
        ("'high'", "{ format = 'high' }"),
        ("{ format = 'mxfp4' }", "{ format = 'mxfp4', block = '1x32', scale_mode = 'floor' }"),
        (
            "{ format = 'nvfp4', rounding = 'stochastic' }",
            "{ format='nvfp4', rounding='stochastic', guard='round_up' }",
        ),
        ("{ format = 'fp8' }", "{ format = 'fp8', block = 'tensor', guard = 'none' }"),
    ],
)
def test_a_treatment_fills_in_its_defaults(short: str, long: str) -> None:
    rest = "\nactivation = 'high'\ngradient = 'high'"
    short_policy = Policy.from_toml(f"[recipe.a]\nweight = {short}{rest}")
    long_policy = Policy.from_toml(f"[recipe.a]\nweight = {long}{rest}")
    assert short_policy == long_policy
    assert short_policy.digest() == long_policy.digest()


def test_a_guard_switched_off_is_not_the_default() -> None:
    off = Treatment(format="nvfp4", rounding="stochastic", guard="none")
    assert off != Treatment(format="nvfp4", rounding="stochastic")
    assert off.spec is not None
    assert off.spec.guard == "none"


def test_a_text_in_place_of_a_list_and_canonical_order() -> None:
    texts = [
        "gemm = ['wgrad', 'fprop']\nblocks = ['last  4', '3-3']\nwhen = 'k>4'",
        "gemm = ['fprop', 'wgrad', 'fprop']\nblocks = ['last 4', '3']\nwhen = '(k > 4)'",
    ]
    first, second = (Policy.from_toml(f"[[rule]]\nrecipe = 'high'\n{text}") for text in texts)
    assert first == second
    assert first.rules[0].gemm == ("fprop", "wgrad")
    assert Rule(recipe="high", module="a") == Rule(recipe="high", module=["a"])  # type: ignore[arg-type]


def test_an_empty_policy_has_no_rules() -> None:
    assert Policy.from_toml("").rules == ()
    assert Policy.from_toml("# nothing\n") == Policy(rules=())


def test_fp8_by_row_and_block_with_scales_that_are_powers_of_two(tmp_path: Path) -> None:
    policy = Policy.from_toml("""
        [recipe.rows]
        weight     = { format = "fp8", block = "128x128", scale_mode = "power_of_two" }
        activation = { format = "fp8", block = "row", scale_mode = "power_of_two" }
        gradient   = { format = "fp8_e5m2", block = "1x128", rounding = "stochastic", scale_mode = "power_of_two" }
        [[rule]]
        recipe = "rows"
    """)
    assert str(policy.recipe("rows").activation) == "fp8 row nearest power_of_two"
    assert str(policy.recipe("rows").gradient.spec) == "fp8_e5m2 1x128 stochastic round_up power_of_two"
    assert Policy.from_toml(policy.to_toml()) == policy
    assert policy.recipe("rows").weight != Treatment(format="fp8", block="128x128")
    with pytest.raises(
        PolicyError, match='by row or block, not for the one scale of a tensor: give block, one of "row"'
    ):
        Policy.from_toml("recipe.a.weight = { format = 'fp8', scale_mode = 'power_of_two' }")
