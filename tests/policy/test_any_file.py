"""Whatever is in a policy file: a policy or a PolicyError that says where, after a bounded amount of work."""

import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from policy_files import policy_file

from metis_compile.policy import Policy, PolicyError, Query
from metis_compile.policy.globs import compile_glob
from metis_compile.policy.limits import DEEPEST, LONGEST
from metis_compile.policy.shape_conditions import parse_condition

MOST_CALLS = 1_500_000  # of Python's functions, about a second's
WHOLE_FILE = ("is not UTF-8 text", "is too long", "is not text that UTF-8 can hold")  # mistakes that have no line


class Calls:
    """Counts the calls of Python functions: a measure of work that other programs on the machine do not change."""

    def __enter__(self) -> "Calls":
        self.count = 0
        sys.setprofile(self._called)
        return self

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        self.count += event == "call"

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)


@contextmanager
def suppress_division_by_zero() -> Iterator[None]:
    """Within: a condition may divide by zero at the sizes that it is asked for."""
    try:
        yield
    except PolicyError as error:
        if "divides by zero" not in str(error):
            raise


def read(path: Path) -> Policy | PolicyError:
    with Calls() as calls:
        try:
            found: Policy | PolicyError = Policy.load(path, trust=False)
        except PolicyError as error:
            found = error
    assert calls.count < MOST_CALLS
    return found


def test_mutated_files(tmp_path: Path, query: Callable[..., Query], long: bool, pytestconfig: pytest.Config) -> None:
    Policy.load("nvfp4")
    most_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = tmp_path / "run.toml"
    read_well = 0
    for seed in range(pytestconfig.getoption("--policy-files") or (10000 if long else 500)):
        path.write_bytes(policy_file(seed))
        try:
            found = read(path)
            if isinstance(found, PolicyError):
                assert found.file is not None
                assert found.line is not None or found.problem.startswith(WHOLE_FILE), str(found)
                assert len(str(found)) < 20_000
            else:
                read_well += 1
                policy = found
                hash(policy)
                with suppress_division_by_zero():
                    policy.decide(query(), lambda _: True)
                if read_well % 10 == 0:
                    assert Policy.from_toml(policy.to_toml(), trust=False) == policy
        except BaseException:
            print(f"policy_file({seed})")
            raise
    assert read_well > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_memory < 2**20  # KiB


SPLIT = 'recipe.r = {{ weight = "high", gradient = "high", activation = {{ format = "nvfp4", split = {} }} }}'
RULE = '[[rule]]\nrecipe = "high"\n{}'


def spectral(setting: str) -> str:
    return SPLIT.format(f"{{ kind = 'spectral', {setting} }}")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("\n\na = " + "[" * 20_000, 3, f"brackets nested more than {DEEPEST} deep"),
        ("a = " + "{a=" * 40, 1, "nested more than"),
        (".".join("a" * 20_000) + " = 1", 1, f"a key of more than {DEEPEST} parts"),
        ("[" + '"a\'". ' * 100 + "a]", 1, "a key of more than"),
        ("[recipe]\na.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r = { " + "a." * 31 + "b = 1 }", 2, "is nested more than"),
        ("\nb = " + "9" * 5000, 2, "more than 400 digits"),
        ("b = 0x" + "f" * 5000, 1, "at most 64 bits"),
        ("b = 9223372036854775808", 1, "at most 64 bits, got 9223372036854775808"),
        (spectral("rank = nan"), 1, "must be a number, got nan"),
        (spectral("rank = inf"), 1, "rank must be a whole number from 1"),
        (spectral("adaptive_residual = inf"), 1, "must be a finite number above 0"),
        (spectral("adaptive_residual = 1" + "0" * 399), 1, "at most 64 bits"),
        (spectral('"²" = 1'), 1, 'unknown key "²"'),
        (
            "[recipe]\n" + "\n".join(f'r{i} = "r{i + 1}"' for i in range(500)) + '\nr500 = "fp8"',
            65,
            "more than 64 recipes",
        ),
        (
            "[recipe]\n" + "\n".join(f'r{i + 1} = "r{i}"' for i in range(500)) + '\nr0 = "fp8"',
            64,
            "more than 64 recipes",
        ),
        (RULE.format('blocks = "first ' + "9" * 5000 + '"'), 3, "is no place in depth"),
        (RULE.format('module = "' + "a" * 1001 + '"'), 3, "longer than 1000 characters"),
        (RULE.format('when = "' + " * ".join(f"(m + {i})" for i in range(40)) + ' > 3"'), 3, "more than 6 sizes"),
        (RULE.format('when = "' + "m + " * 200 + '1 > 3"'), 3, "nested more than 64 deep"),
        ('"\\n\\u0007" = 1', 1, r'"\n\u0007": unknown key "\n\u0007"'),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_what_once_raised_something_else_or_took_minutes(text: str, line: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    error = read(tmp_path / "run.toml")
    assert isinstance(error, PolicyError)
    assert error.line == line
    assert said in str(error)


def test_a_file_may_be_so_long_and_no_longer(tmp_path: Path) -> None:
    rule = '[[rule]]\nrecipe = "high"\n'
    path = tmp_path / "run.toml"
    path.write_text(rule * (LONGEST // len(rule)))
    policy = read(path)
    assert isinstance(policy, Policy)
    assert len(policy.rules) == LONGEST // len(rule)
    path.write_text(rule * 40_000)
    assert "is too long: a policy, with all files that it extends, may have 65,536 bytes" in str(read(path))
    (tmp_path / "base.toml").write_text(rule * (LONGEST // len(rule) // 2))
    path.write_text('extends = "base.toml"\n' + rule * (LONGEST // len(rule) // 2 + 10))
    error = read(path)
    assert isinstance(error, PolicyError)
    assert "is too long" in str(error)


def test_so_many_files_may_extend_one_another(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"')
    (tmp_path / "100.toml").write_text("")
    assert isinstance(read(tmp_path / "70.toml"), Policy)
    assert "more than 32 files extend one another" in str(read(tmp_path / "0.toml"))


@pytest.mark.parametrize("text", [None, b"", 3, Path("run.toml"), ["a"], "\ud800"])
def test_a_text_that_is_none(text: Any) -> None:
    with pytest.raises(PolicyError, match=r"^run.toml: (a policy must be given as text, got|is not text that UTF-8)"):
        Policy.from_toml(text, name="run.toml")


@pytest.mark.parametrize("glob", ["{0..9999}" * 20, "*a" * 30, "*" * 500, "{*a,*b}" * 100, "{1..1111}*" * 90])
def test_a_glob_is_matched_in_time_that_grows_with_its_length(glob: str) -> None:
    name = "layers.1234567890." * 10 + "a" * 50 + "x"
    with Calls() as calls:
        compile_glob(glob).fullmatch(name)
    assert calls.count < 100 * len(glob) + 3 * len(glob) * len(name) // 10


def test_globs_mean_what_the_same_regular_expression_means() -> None:
    expressions = {
        "*a*b": ".*a.*b",
        "{a,b*}{0..12}*": "(a|b.*)([0-9]|1[0-2]).*",
        "*.{a*a,a}.b": r"(.*\.)?(a.*a|a)\.b",
        "{1..1}{1..11}1": "1([1-9]|10|11)1",
    }
    names = [
        "ab",
        "aab",
        "b",
        "abab.b",
        "a.b",
        "x.aa.b",
        "aa.b",
        "a1",
        "b12",
        "b13",
        "a012",
        "1111",
        "1101",
        "111",
        "11111",
    ]
    for glob, expression in expressions.items():
        for name in names:
            matched = re.fullmatch(expression, name) is not None
            assert compile_glob(glob).fullmatch(name) == matched, (glob, name)


def test_a_condition_of_six_sizes_is_a_condition() -> None:
    assert parse_condition("m * n * k % (16 * n) == 0 and m * n > k").evaluate({"m": 32, "n": 3, "k": 5}) is True
