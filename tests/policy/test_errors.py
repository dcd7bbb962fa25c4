"""Every mistake says the file, the line, the key, the value, what is allowed, and the nearest valid name."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from metis_compile.policy import Policy, PolicyError, Recipe, Rule, Treatment
from metis_compile.policy.errors import nearest_name, show

Mistake = Callable[..., PolicyError]


# Each: the text, the line, the key, the value, some of what is allowed, the nearest valid name, words of the message.
NAMES = [
    ("\nextend = 'nvfp4'", 2, "extend", "extend", ["extends"], "extends", "a policy has the keys"),
    ("[[rules]]\nrecipe = 'high'", 1, "rules", "rules", ["rule"], "rule", "unknown key"),
    ("[recipes.a]", 1, "recipes", "recipes", ["recipe"], "recipe", "unknown key"),
    ("extends = 'nvfp'", 1, "extends", "nvfp", ["nvfp4", "fp8"], "nvfp4", "must be one of"),
    ("[[rule]]\nrecipe = 'high'\nmodul = '*'", 3, "rule 1, modul", "modul", ["module"], "module", "a rule has"),
    (
        "[[rule]]\nrecipe='high'\n[[rule]]\nblock='last 2'",
        4,
        "rule 2, block",
        "block",
        ["blocks"],
        "blocks",
        "unknown key",
    ),
    ("[[rule]]\nrecipe = 'hihg'", 2, "rule 1, recipe", "hihg", ["high", "fp8"], "high", "one of"),
    (
        "[[rule]]\nrecipe = 'w4a4'\n[recipe.w4]\nextends = 'fp8'",
        2,
        "rule 1, recipe",
        "w4a4",
        ["w4", "w4a4g4"],
        "w4a4g4",
        "one of",
    ),
    (
        "[[rule]]\nrecipe='high'\ngemm = ['fprop',\n 'dgard']",
        4,
        "rule 1, gemm",
        "dgard",
        ["fprop", "dgrad", "wgrad"],
        "dgrad",
        "one of",
    ),
    ("[[rule]]\nrecipe='high'\nop = 'liner'", 3, "rule 1, op", "liner", ["linear", "bmm"], "linear", "one of"),
    (
        "[[rule]]\nrecipe='high'\noperand = 'weights'",
        3,
        "rule 1, operand",
        "weights",
        ["weight", "gradient"],
        "weight",
        "one of",
    ),
    ("[[rule]]\nrecipe='high'\ndtype = 'bf16'", 3, "rule 1, dtype", "bf16", ["bfloat16"], "bfloat16", "one of"),
    ("[[rule]]\nrecipe='high'\nblocks = 'lsat 4'", 3, "rule 1, blocks", "lsat 4", ["last 4"], "last", "mean"),
    ("[[rule]]\nrecipe='high'\nwhen = 'K > 4'", 3, "rule 1, when", "K > 4", ["m", "n", "k"], "k", "unknown name"),
    (
        "[recipe.a]\nwieght = 'fp8'",
        2,
        "recipe a, wieght",
        "wieght",
        ["weight", "extends"],
        "weight",
        "a recipe has the keys",
    ),
    ("[recipe.a]\nextends = 'nvpf4'", 2, "recipe a, extends", "nvpf4", ["nvfp4", "high"], "nvfp4", "one of"),
    ("recipe.attention = 'npfp4'", 1, "recipe attention, extends", "npfp4", ["nvfp4"], "nvfp4", "one of"),
    ("[recipe.a]\nweight = 'nvpf4'", 2, "recipe a, weight, format", "nvpf4", ["nvfp4", "high"], "nvfp4", "one of"),
    (
        "[recipe.a]\ngradient = { format = 'mxfp8', bloc = '1x32' }",
        2,
        "recipe a, gradient, bloc",
        "bloc",
        ["block"],
        "block",
        "a treatment has the keys",
    ),
    (
        "[recipe.a.weight]\nformat = 'nvfp4'\nblock = '16x61'",
        3,
        "recipe a, weight, block",
        "16x61",
        ["1x16", "16x16"],
        "16x16",
        "one of",
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', rounding = 'stocastic' }",
        2,
        "recipe a, weight, rounding",
        "stocastic",
        ["nearest", "stochastic", "eden"],
        "stochastic",
        "for nvfp4",
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', rounding = 'stochastic', guard = 'roundup' }",
        2,
        "recipe a, weight, guard",
        "roundup",
        ["round_up", "17/16"],
        "round_up",
        "one of",
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', four_over_six = 'mes' }",
        2,
        "recipe a, weight, four_over_six",
        "mes",
        ["mse", "mae"],
        "mse",
        "for nvfp4",
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', hadamard = 'fxed' }",
        2,
        "recipe a, weight, hadamard",
        "fxed",
        ["fixed", "fresh"],
        "fixed",
        "one of",
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', split = ['meen', 'spectral'] }",
        2,
        "recipe a, weight, split 1, kind",
        "meen",
        ["mean", "spectral"],
        "mean",
        "one of",
    ),
    (
        "[recipe.a.weight]\nformat = 'nvfp4'\n[recipe.a.weight.split]\nkind = 'mean'\nfodl = true",
        5,
        "recipe a, weight, split, fodl",
        "fodl",
        ["kind", "factors", "fold", "partner"],
        "fold",
        "a mean split has the keys",
    ),
    (
        "[recipe.a]\nweight = { format = 'mxfp4', scale_mode = 'flor' }",
        2,
        "recipe a, weight, scale_mode",
        "flor",
        ["floor", "rceil", "even"],
        "floor",
        "one of",
    ),
]


@pytest.mark.parametrize(
    ("text", "line", "key", "value", "allowed", "nearest", "said"), NAMES, ids=[case[2] for case in NAMES]
)
def test_a_wrong_name(
    mistake: Mistake, text: str, line: int, key: str, value: str, allowed: list[str], nearest: str, said: str
) -> None:
    error = mistake(text)
    assert (error.file, error.line, error.key, error.value) == ("run.toml", line, key, value)
    assert error.nearest == nearest
    assert error.allowed is not None
    assert set(allowed) <= set(error.allowed)
    message = str(error)
    assert message.startswith(f"run.toml:{line}: {key}: ")
    assert said in message
    assert value in message
    assert "did you mean" in message
    assert f'"{nearest}' in message.split("did you mean")[1]
    assert all(name in message for name in allowed)


# Each: the text, the line, the key, words of the message.
OTHERS = [
    ("rule = 'high'", 1, "rule", 'written as [[rule]], in double brackets, got "high"'),
    ("[rule]\nrecipe = 'high'", 1, "rule", "written as [[rule]], in double brackets"),
    ("recipe = 'nvfp4'", 1, "recipe", 'written as [recipe.NAME], in single brackets, got "nvfp4"'),
    ("[[recipe]]\nname = 'a'", 1, "recipe", "written as [recipe.NAME]"),
    ("[[rule]]\nmodule = '*'", 1, "rule 1, recipe", 'a rule must name a recipe: recipe = "NAME"'),
    (
        "[recipe.a]\nweight = { format = 'mxfp8', hold_amax = 50 }",
        2,
        "recipe a, weight, hold_amax",
        "50 means nothing for mxfp8 1x32, which has no scale of the whole tensor; leave it out",
    ),
    (
        "[recipe.a.weight]\nformat = 'fp8'\nblock = 'row'\nhold_amax = 50",
        4,
        "recipe a, weight, hold_amax",
        "50 means nothing for fp8 row, which has no scale of the whole tensor",
    ),
    (
        "[recipe.a]\nweight = { format = 'ufp4', hold_amax = 2 }",
        2,
        "recipe a, weight, hold_amax",
        "2 means nothing for ufp4 1x16, which has no scale of the whole tensor",
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', four_over_six = true, hold_amax = 2 }",
        2,
        "recipe a, weight, hold_amax",
        "2 means nothing for nvfp4 1x16, whose 4/6 compares errors that are bounded under the tensor's own amax alone",
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', estimator = 'dge', hold_amax = 2 }",
        2,
        "recipe a, weight, hold_amax",
        "2 does not go with an estimator",
    ),
    (
        "[recipe.a]\nweight = { format = 'high', hold_amax = 50 }",
        2,
        "recipe a, weight, hold_amax",
        '50 means nothing with format "high"',
    ),
    *(
        (
            f"[recipe.a]\nweight = {{ format = 'nvfp4', hold_amax = {value} }}",
            2,
            "recipe a, weight, hold_amax",
            f"must be a number of steps from 1 to 16,777,216, got {shown}",
        )
        for value, shown in [
            ("0", "0"),
            ("-5", "-5"),
            ("2.0", "2.0"),
            ("1.0", "1.0"),
            ("true", "true"),
            ("'50'", '"50"'),
        ]
    ),
    ("[[rule]]\nrecipe = 3", 2, "rule 1, recipe", "must be the name of a recipe, got 3"),
    ("[[rule]]\nrecipe.heads = 'fp8'", 2, "rule 1, recipe", "defined outside of the rules"),
    ("[[rule]]\nrecipe = 'high'\nextends = 'fp8'", 3, "rule 1, extends", "belongs above the first [table]"),
    ("[[rule]]\nrecipe='high'\nmodule = 3", 3, "rule 1, module", "must be a text or a list of texts, got 3"),
    ("[[rule]]\nrecipe='high'\nmodule = ['a', 3]", 3, "rule 1, module", 'must be a text or a list of texts, got ["'),
    ("[[rule]]\nrecipe='high'\ngemm = []", 3, "rule 1, gemm", "an empty list, which matches nothing"),
    ("[[rule]]\nrecipe='high'\nmodule = ['a',\n'b{']", 4, "rule 1, module", '"b{" has a { that is not closed'),
    ("[[rule]]\nrecipe='high'\nhas_weight = 'no'", 3, "rule 1, has_weight", 'must be true or false, got "no"'),
    ("[[rule]]\nrecipe='high'\nwhen = true", 3, "rule 1, when", "must be a condition in quotes, got true"),
    ("[[rule]]\nrecipe='high'\nwhen = 'k > n / 2'", 3, "rule 1, when", "whole-number division is //"),
    ("[[rule]]\nrecipe='high'\nblocks = '5-3'", 3, "rule 1, blocks", '"5-3" runs backwards'),
    ("[recipe.a]\nweight = 'fp8'", 1, "recipe a", "activation, gradient missing"),
    ("[recipe]\na = 3", 2, "recipe a", "must be a table, or the name of another recipe, got 3"),
    ("[recipe]\nweight = 'fp8'", 2, "recipe weight", "weight is a key of a recipe, not a recipe's name"),
    ("[recipe.high]\nextends = 'fp8'", 1, "recipe high", '"high" is built in and cannot be redefined'),
    ("[recipe.'a b']\nextends = 'fp8'", 1, "recipe a b", 'letters, digits, - and _ only, got "a b"'),
    ("[recipe.a]\nextends = 3", 2, "recipe a, extends", "must be the name of a recipe, got 3"),
    (
        "[recipe.a]\nextends = 'b'\n[recipe.b]\nextends = 'c'\n[recipe.c]\nextends = 'a'",
        6,
        "recipe c, extends",
        "extend each other in a circle: a -> b -> c -> a",
    ),
    ("[recipe.a]\nextends = 'a'", 2, "recipe a, extends", "must be one of"),
    ("[recipe.a]\nweight = 3", 2, "recipe a, weight", "must be a format's name or a table, got 3"),
    ("[recipe.a]\nweight = {}", 2, "recipe a, weight, format", 'must have a format, such as format = "nvfp4"'),
    ("[recipe.a]\nweight = { format = 4 }", 2, "recipe a, weight, format", "got 4"),
    ("[recipe.a]\nweight = { format = 'nvfp4', block = 16 }", 2, "recipe a, weight, block", "got 16"),
    (
        "[recipe.a]\nweight = { format = 'high', block = '1x16' }",
        2,
        "recipe a, weight, block",
        'means nothing with format "high"',
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', guard = '17/16' }",
        2,
        "recipe a, weight, guard",
        'is for rounding = "stochastic" only; leave it out',
    ),
    (
        "[recipe.a]\nweight = { format = 'mxfp4', rounding = 'eden' }",
        2,
        "recipe a, weight, rounding",
        'must be one of "nearest", "stochastic" for mxfp4, got "eden"',
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', rounding = 'eden', guard = 'round_up' }",
        2,
        "recipe a, weight, guard",
        'is for rounding = "stochastic" only; leave it out',
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', rounding = 'eden', four_over_six = true }",
        2,
        "recipe a, weight, four_over_six",
        'means nothing with rounding = "eden", which has no choice of 6 or 4; leave it out',
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', scale_mode = 'floor' }",
        2,
        "recipe a, weight, scale_mode",
        "means nothing for nvfp4, whose scale is e4m3; leave it out",
    ),
    ("[recipe.a]\nweight = { format = 'nvfp4', splt = 'mean' }", 2, "recipe a, weight, splt", "unknown key"),
    (
        "[recipe.a]\nweight = { format = 'high', split = 'mean' }",
        2,
        "recipe a, weight, split",
        'means nothing with format "high"',
    ),
    (
        "[recipe.a]\nweight = { format = 'mxfp4', four_over_six = true }",
        2,
        "recipe a, weight, four_over_six",
        "means nothing for mxfp4: nvfp4 alone can scale a block to 6 or to 4; leave it out",
    ),
    ("[recipe.a]\nweight = { format = 'nvfp4', split = 3 }", 2, "recipe a, weight, split", "a list of these, got 3"),
    ("[recipe.a]\nweight = { format = 'nvfp4', split = [] }", 2, "recipe a, weight, split", "is an empty list"),
    ("[recipe.a.weight]\nformat = 'nvfp4'\nsplit.rank = 3", 3, "recipe a, weight, split, kind", "must have a kind"),
    (
        "[recipe.a.weight]\nformat = 'nvfp4'\n[recipe.a.weight.split]\nkind = 'spectral'\nrank = -3",
        5,
        "recipe a, weight, split, rank",
        "rank must be a whole number from 1, a share below 1, or 'auto', got -3",
    ),
    (
        "[recipe.a.weight]\nformat = 'nvfp4'\nsplit = ['mean',\n{ kind = 'spectral', oversample = 'no' }]",
        4,
        "recipe a, weight, split 2, oversample",
        "oversample must be a whole number, 0 or more, got 'no'",
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', split = ['spectral', 'spectral'] }",
        2,
        "recipe a, weight, split",
        "one step of a chain may keep a basis",
    ),
    (
        "[recipe.a]\nweight = { format = 'nvfp4', split = 'nobodys.package:Class' }",
        2,
        "recipe a, weight, split, kind",
        "can't be imported: No module named 'nobodys'",
    ),
    ("extends = 3", 1, "extends", "must be a preset's name or a path, got 3"),
    ("extends = './absent.toml'", 1, "extends", '"./absent.toml" is not there'),
    ("extends = './nvfp4.toml'", 1, "extends", 'did you mean "nvfp4"?'),
    ("extends = '.'", 1, "extends", "must be one of"),
    ("extends = './'", 1, "extends", '"./" is a folder'),
]


@pytest.mark.parametrize(("text", "line", "key", "said"), OTHERS, ids=[case[3] for case in OTHERS])
def test_another_mistake(mistake: Mistake, tmp_path: Path, text: str, line: int, key: str, said: str) -> None:
    error = mistake(text, folder=tmp_path)
    assert (error.file, error.line, error.key) == ("run.toml", line, key)
    assert str(error).startswith(f"run.toml:{line}: {key}: ")
    assert said in str(error)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[[rule]]\nrecipe = high", 2, 'recipe = high"; a text goes in quotes: recipe = "high"'),
        ("\n[[rule]]\nmodule = *.head  # x", 3, 'a text goes in quotes: module = "*.head"'),
        ("[[rule]\nrecipe = 'high'", 1, '"[[rule]"'),
        ("[[rule]]\nrecipe = 'high'\nrecipe = 'fp8'", 3, "is not valid TOML"),
        ("[[rule]]\nmodule = ['a',\n", 3, "at the end of the file"),
        ("a = 'b", 1, "is not valid TOML"),
    ],
)
def test_a_text_that_is_not_toml_shows_the_line(mistake: Mistake, text: str, line: int, said: str) -> None:
    error = mistake(text)
    assert (error.file, error.line) == ("run.toml", line)
    assert error.value == text.split("\n")[line - 1].strip()
    assert said in str(error)
    assert str(error).startswith(f"run.toml:{line}: is not valid TOML: ")


def test_a_file_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.toml").write_text("[[rule]]\r\n\r\nrecipe = 'hihg'\r\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyError) as caught:
        Policy.load("run.toml")
    assert str(caught.value).startswith("run.toml:3: rule 1, recipe: ")
    with pytest.raises(PolicyError) as caught:
        Policy.load(tmp_path / "run.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'run.toml'}:3: ")


def test_a_mistake_in_an_extended_file_is_placed_there(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("\n\n[[rule]]\nrecipe = 'high'\ngemm = 'fprob'\n")
    (tmp_path / "run.toml").write_text("extends = 'base.toml'\n")
    with pytest.raises(PolicyError) as caught:
        Policy.load(tmp_path / "run.toml")
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "base.toml"), 5)


def test_a_circle_of_files_is_shown(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "sub/c"), ("sub/c", "../a")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.toml").write_text(f"extends = '{base}.toml'")
    with pytest.raises(PolicyError, match=r"circle: a\.toml -> b\.toml -> c\.toml -> a\.toml") as caught:
        Policy.load(tmp_path / "a.toml")
    assert (caught.value.file, caught.value.line, caught.value.key) == (
        str(tmp_path / "sub" / "c.toml"),
        1,
        "extends",
    )


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(PolicyError, match="is not UTF-8 text"):
        Policy.load(tmp_path / "run.toml")
    with pytest.raises(PolicyError, match=r'runn.toml" is not there; .*did you mean "run.toml"\?'):
        Policy.load(tmp_path / "runn.toml")
    with pytest.raises(PolicyError, match="is a folder"):
        Policy.load(tmp_path)
    with pytest.raises(PolicyError, match="cannot be looked up"):
        Policy.load("x" * 5000 + ".toml")
    with pytest.raises(PolicyError, match=r'must be one of .*"fp8", .*, got "mxpf4"; did you mean "mxfp4"\?'):
        Policy.load("mxpf4")
    with pytest.raises(PolicyError, match=r"must be a preset's name or a path, got null"):
        Policy.load(None)  # type: ignore[arg-type]


def test_mistakes_in_a_policy_built_in_python() -> None:
    with pytest.raises(PolicyError, match=r'^format: must be one of .*, got "nvpf4"; did you mean "nvfp4"\?$'):
        Treatment(format="nvpf4")
    with pytest.raises(PolicyError, match=r"^gemm: must be one of"):
        Rule(recipe="high", gemm=("fprob",))
    with pytest.raises(PolicyError, match=r'^rule 2, recipe: must be .*got "fp8"'):
        Policy(rules=(Rule(recipe="high"), Rule(recipe="fp8")))
    fp8 = Recipe(name="a", **dict.fromkeys(("weight", "activation", "gradient"), Treatment(format="fp8")))
    with pytest.raises(PolicyError, match=r"two recipes are named a"):
        Policy(recipes=(fp8, fp8), rules=())
    with pytest.raises(PolicyError, match=r'"high" is built in'):
        Recipe(name="high", weight=fp8.weight, activation=fp8.weight, gradient=fp8.weight)
    with pytest.raises(PolicyError, match=r'must be one of "high", "a", got "b"'):
        Policy(recipes=(fp8,), rules=()).recipe("b")


def test_an_error_survives_pickling_and_copying(mistake: Mistake) -> None:
    error = mistake("[[rule]]\nrecipe = 'hihg'")
    for same in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert str(same) == str(error)
        assert vars(same) == vars(error)
    assert isinstance(error, ValueError)


def test_the_nearest_name_and_how_values_are_shown() -> None:
    assert nearest_name("K", ("m", "n", "k")) == "k"
    assert nearest_name("zzz", ("m", "n", "k")) is None
    assert nearest_name(3, ("m", "n", "k")) is None
    assert show("é") == '"é"'
    assert len(show("x" * 1000)) == 120
    assert show({1, 2} - {1}) == "{2}"


_words = st.sampled_from(
    [
        "extends",
        "recipe",
        "rule",
        "high",
        "fp8",
        "nvfp4",
        "main",
        "weight",
        "activation",
        "gradient",
        "format",
        "block",
        "rounding",
        "guard",
        "module",
        "blocks",
        "gemm",
        "when",
        "has_weight",
        "1x16",
        "stochastic",
        "round_up",
        "fprop",
        "k%2==0",
        "{",
    ]
)
_values = st.recursive(
    _words | st.integers(-2, 40) | st.booleans() | st.floats(allow_nan=False) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4),
    max_leaves=12,
)
_tables = st.dictionaries(_words, _values, max_size=4)
_files = st.fixed_dictionaries(
    {},
    optional={
        "extends": st.sampled_from(["nvfp4", "high", "nvfp", 3]),
        "recipe": st.dictionaries(_words, _tables | _values, max_size=3),
        "rule": st.lists(_tables, max_size=3),
    },
)


@settings(deadline=None, max_examples=150)
@given(_files | _tables)
def test_whatever_is_in_a_file_is_a_policy_or_a_placed_mistake(data: dict[str, object]) -> None:
    text = tomlkit.dumps(data)
    result: Policy | PolicyError
    try:
        result = Policy.from_toml(text, name="run.toml")
    except PolicyError as error:
        result = error
    if isinstance(result, Policy):
        assert Policy.from_toml(result.to_toml()) == result
    else:
        assert result.line is not None
        assert 1 <= result.line <= text.count("\n") + 1
        assert str(result).startswith(f"run.toml:{result.line}: ")
