"""Policy files with mistakes of every kind, made at random from good ones, and how many of them are read."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from metis_compile.policy.presets import preset_path, presets

MANY = """\
extends = "nvfp4"
recipe.attention = "fp8"
[recipe.mine]
extends = "metis"
weight = { format = "nvfp4", block = "16x16", four_over_six = "mse", hadamard = "fixed" }
activation = { format = "nvfp4", split = ["mean", { kind = "spectral", rank = 0.015, factors = "nvfp4 1x16 nearest" }] }
gradient = { format = "mxfp8", rounding = "stochastic", guard = "none", scale_mode = "rceil" }
[recipe.yours]
extends = "mine"
weight = { format = "fp8", block = "row", split = { kind = "spectral", adaptive_residual = 2.5, refresh = 16 } }
[[rule]]
module = ["*.lm_head", "layers.{0,1,30..31}.*", "{a,b*}.*.c"]
blocks = ["first 2", "last 15%", "3-5"]
op = ["linear", "matmul"]
gemm = ["fprop", "dgrad"]
recipe = "high"
[[rule]]
operand = "gradient"
dtype = "bfloat16"
has_weight = true
when = "k >= 256 and (n % 16 == 0 or not m * n > 4096) and 16 <= k < 4096"
recipe = "yours"
"""

VALUES = [
    *["nan", "-inf", "inf", "1e400", "0", "-1", "9223372036854775808", "true", "false", "[]", "{}", "[[]]"],
    *["1979-05-27", "07:32:00", "2000-02-30"],
    *["9" * 5000, "0x" + "f" * 40, '""', "''", '"high"', '"mean"', '"x:y"', '".x:y"', '"\\u0000"', '"\\ud800"'],
    *['"ä\\n"', "{ a = 1 }"],
]
PIECES = [
    *"[]{}\"'#=,.:\\\n\t\r\0\x7f\ufeff²٣é*%0",
    *[
        '"""',
        "'''",
        "[[",
        "]]",
        "[[rule]]\n",
        "[recipe]\n",
        "recipe.a = ",
        'extends = "',
        "{0..9999}",
        "{a,b",
        "*a",
        "...",
    ],
    *[" and ", " or ", "not ", "(m + 1) * ", "// 0", "k % (n - n)", "**", "99999999999", "kind = "],
    *VALUES,
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--policy-files",
        type=int,
        help="mutated policy files that tests/policy reads (500, and 10000 in the long tail)",
    )


def policy_file(seed: int) -> bytes:
    """The file of this number: a preset or a file that uses everything, with one to six changes."""
    draw = random.Random(seed)
    # They extend a file beside them, which is not beside the changed ones.
    texts = (preset_path(name).read_text() for name in [*presets(), "base"])
    good = [MANY, *(text.replace('extends = "base.toml"', 'extends = "nvfp4"') for text in texts)]
    text = draw.choice([MANY, draw.choice(good)])
    for _ in range(draw.randint(1, 6)):
        text = draw.choice(CHANGES)(text, draw, good)
        text = text[: 128 * 1024]
    data = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.05:  # bytes that are no text
        at = draw.randrange(len(data) + 1)
        data = data[:at] + draw.randbytes(draw.randint(1, 4)) + data[at:]
    return data


def insert(text: str, draw: random.Random, good: list[str]) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + draw.choice(PIECES) + text[at:]


def delete(text: str, draw: random.Random, good: list[str]) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + text[at + draw.choice([1, 1, 2, 10, 100]) :]


def swap_lines(text: str, draw: random.Random, good: list[str]) -> str:
    lines = text.split("\n")
    a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines)


def drop_line(text: str, draw: random.Random, good: list[str]) -> str:
    lines = text.split("\n")
    del lines[draw.randrange(len(lines))]
    return "\n".join(lines)


def replace_value(text: str, draw: random.Random, good: list[str]) -> str:
    lines = text.split("\n")
    assigned = [index for index, line in enumerate(lines) if "=" in line]
    if not assigned:
        return text
    index = draw.choice(assigned)
    places = [at for at, character in enumerate(lines[index]) if character == "="]
    head = lines[index][: draw.choice(places) + 1]
    lines[index] = f"{head} {draw.choice(VALUES)}{draw.choice(['', '', ' }', '] }'])}"
    return "\n".join(lines)


def replace_key(text: str, draw: random.Random, good: list[str]) -> str:
    words = [
        "rank",
        "kind",
        "split",
        "module",
        "when",
        "recipe",
        "extends",
        "weight",
        "format",
        "block",
        "rule",
        "high",
    ]
    word = draw.choice(words)
    return text.replace(
        word, draw.choice([*words, "", f"{word}.{word}", f'"{word}\\t"', word.upper()]), draw.choice([1, -1])
    )


def repeat(text: str, draw: random.Random, good: list[str]) -> str:
    start = draw.randrange(len(text) + 1)
    length = draw.choice([1, 2, 5, 40, 400])
    return text[:start] + text[start : start + length] * draw.choice([2, 10, 100, 3000]) + text[start + length :]


def nest(text: str, draw: random.Random, good: list[str]) -> str:
    at, deep = draw.randrange(len(text) + 1), draw.choice([1, 2, 30, 40, 5000])
    opening, closing = draw.choice([("[", "]"), ("{a=", "}"), ("(", ")"), ("a.", ""), ("not ", ""), ("-", "")])
    return text[:at] + opening * deep + text[at : at + 5] + closing * deep + text[at + 5 :]


def splice(text: str, draw: random.Random, good: list[str]) -> str:
    other = draw.choice(good)
    return text[: draw.randrange(len(text) + 1)] + other[draw.randrange(len(other)) :]


def truncate(text: str, draw: random.Random, good: list[str]) -> str:
    return text[: draw.randrange(len(text) + 1)]


def extend_many(text: str, draw: random.Random, good: list[str]) -> str:
    count = draw.choice([2, 70, 500])
    lines = [f'r{index} = "r{index + 1}"' for index in range(count)]
    draw.shuffle(lines)
    return "\n".join(["[recipe]", *lines, f'r{count} = "{draw.choice(["fp8", "r0", "high"])}"', text])


CHANGES: list[Callable[[str, random.Random, list[str]], str]] = [
    *[insert, insert, delete, swap_lines, drop_line, replace_value, replace_value, replace_value, replace_key],
    *[repeat, nest, splice, truncate, extend_many],
]
