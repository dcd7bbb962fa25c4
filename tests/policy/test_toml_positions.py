import tomllib
from pathlib import Path

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from metis_compile.policy.presets import preset_path, presets
from metis_compile.policy.toml_positions import key_lines, line_of

TEXT = '''\
# a comment with [brackets] and "quotes
extends = "nvfp4"  # = x

a.b . "c d" = 1
[recipe]
heads = "high" # [[rule]]
long = """
[not.a.table]
key = 1 \\""" still
"""
[ recipe . w4a4g4 ]
weight = { format = "nvfp4", inner = { "x.y" = [1, 2] }, z = 3 }

[[rule]]
module = [
  "a",   # "b"
  """b
[[rule]]""",

  'c\\',
]
when = 1979-05-27 07:32:00
[[rule]]
[rule.sub]
key = [[1], [
  2]]
[[rule.deep]]
[[rule.deep]]
last = true'''


def test_lines_of_tables_keys_and_list_entries() -> None:
    lines = key_lines(TEXT)
    assert {path: line for path, line in lines.items() if path[-1] != "x"} == {
        ("extends",): 2,
        ("a",): 4,
        ("a", "b"): 4,
        ("a", "b", "c d"): 4,
        ("recipe",): 5,
        ("recipe", "heads"): 6,
        ("recipe", "long"): 7,
        ("recipe", "w4a4g4"): 11,
        ("recipe", "w4a4g4", "weight"): 12,
        ("recipe", "w4a4g4", "weight", "format"): 12,
        ("recipe", "w4a4g4", "weight", "inner"): 12,
        ("recipe", "w4a4g4", "weight", "inner", "x.y"): 12,
        ("recipe", "w4a4g4", "weight", "inner", "x.y", 0): 12,
        ("recipe", "w4a4g4", "weight", "inner", "x.y", 1): 12,
        ("recipe", "w4a4g4", "weight", "z"): 12,
        ("rule",): 14,
        ("rule", 0): 14,
        ("rule", 0, "module"): 15,
        ("rule", 0, "module", 0): 16,
        ("rule", 0, "module", 1): 17,
        ("rule", 0, "module", 2): 20,
        ("rule", 0, "when"): 22,
        ("rule", 1): 23,
        ("rule", 1, "sub"): 24,
        ("rule", 1, "sub", "key"): 25,
        ("rule", 1, "sub", "key", 0): 25,
        ("rule", 1, "sub", "key", 0, 0): 25,
        ("rule", 1, "sub", "key", 1): 25,
        ("rule", 1, "sub", "key", 1, 0): 26,
        ("rule", 1, "deep"): 27,
        ("rule", 1, "deep", 0): 27,
        ("rule", 1, "deep", 1): 28,
        ("rule", 1, "deep", 1, "last"): 29,
    }


def test_a_place_without_a_line_has_that_of_what_is_around_it() -> None:
    lines = key_lines(TEXT)
    assert line_of(lines, ("rule", 1, "recipe")) == 23
    assert line_of(lines, ("recipe", "w4a4g4", "weight", "block")) == 12
    assert line_of(lines, ("rules",)) is None
    assert line_of(lines, ()) is None


def paths(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path}.union(*(paths(inner, (*path, key)) for key, inner in items))


_values = st.recursive(
    st.text(max_size=8) | st.integers() | st.booleans() | st.floats(allow_nan=False) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=4), _values, max_size=4))
def test_every_path_of_any_toml_is_found_on_a_line_of_the_text(data: dict[str, object]) -> None:
    text = tomlkit.dumps(data)
    loaded = tomllib.loads(text)
    lines = key_lines(text.replace("\r\n", "\n"))
    assert paths(loaded) - {()} <= set(lines)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@pytest.mark.parametrize("name", presets())
def test_a_preset_line_by_line(name: str) -> None:
    text = Path(preset_path(name)).read_text()
    source = text.split("\n")
    for path, line in key_lines(text).items():
        if isinstance(path[-1], str):
            assert path[-1] in source[line - 1]
        elif path[:-1] == ("rule",):
            assert source[line - 1].startswith("[[rule]]")
