"""Bounds on a policy file, which keep the time and memory of reading any file small.

Those of the text are checked before it is parsed: tomllib takes time and memory by the square of a dotted key's parts,
and fails where brackets are nested beyond Python's recursion limit.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from metis_compile.policy.errors import PolicyError, show

LONGEST = 64 * 1024  # bytes of a file and of all files that it extends, together
MOST_FILES = 32  # that extend one another
DEEPEST = 32  # levels of tables and lists within one another
LONGEST_NUMBER = 400  # characters; Python refuses to convert more than 4,300 digits

_Path = tuple[str | int, ...]

# Strings, closed or not, and comments: each alternative takes what it begins with, so that a search is linear.
_QUOTED_OR_COMMENT = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5})?'
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5})?"
    r'|"(?:[^"\\\n]|\\[^\n])*+"?'
    r"|'[^'\n]*+'?"
    r"|\#[^\n]*+",
    re.DOTALL,
)
_BRACKET_OR_LINE = re.compile(r"[\[{\]}\n]")
_KEY_OR_NUMBER = re.compile(r"[^=,\[\]{}\n]+")
_DIGITS = re.compile(r"[0-9_]+")


def check_text(text: str) -> None:
    """Raises PolicyError, with its line, for a text that is longer or nested deeper than a policy may be."""
    if len(text) > LONGEST:
        raise too_long()
    bare = _QUOTED_OR_COMMENT.sub(_without_contents, text)
    depth, line = 0, 1
    for found in _BRACKET_OR_LINE.finditer(bare):
        if found[0] == "\n":
            line += 1
            continue
        depth = depth + 1 if found[0] in "[{" else max(0, depth - 1)
        if depth > DEEPEST:
            raise PolicyError(f"has brackets nested more than {DEEPEST} deep", line=line)
    for found in _KEY_OR_NUMBER.finditer(bare):
        if found[0].count(".") >= DEEPEST:
            raise PolicyError(f"has a key of more than {DEEPEST} parts", line=_line(bare, found.start()))
    for found in _DIGITS.finditer(bare):
        if found.end() - found.start() > LONGEST_NUMBER:
            raise PolicyError(
                f"has a number or a key of more than {LONGEST_NUMBER} digits", line=_line(bare, found.start())
            )


def check_values(data: dict[str, Any]) -> tuple[_Path, PolicyError] | None:
    """The first value, by its path, that no policy may hold: nested too deep, NaN, or beyond 64 bits."""
    for path, value in _values(data):
        if len(path) > DEEPEST:
            return path, PolicyError(f"is nested more than {DEEPEST} deep")
        if isinstance(value, float) and math.isnan(value):
            return path, PolicyError("must be a number, got nan", value=value)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return path, PolicyError(f"must be a whole number of at most 64 bits, got {show(value)}", value=value)
    return None


def too_long() -> PolicyError:
    """The error for a file that is longer than LONGEST with what it extends."""
    return PolicyError(f"is too long: a policy, with all files that it extends, may have {LONGEST:,} bytes")


def _values(data: dict[str, Any]) -> Iterator[tuple[_Path, Any]]:
    waiting: list[tuple[_Path, Any]] = [((), data)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if len(path) <= DEEPEST and isinstance(value, dict):
            waiting += [((*path, key), inner) for key, inner in value.items()]
        elif len(path) <= DEEPEST and isinstance(value, list):
            waiting += [((*path, index), inner) for index, inner in enumerate(value)]


def _without_contents(found: re.Match[str]) -> str:
    return "_" + "\n" * found[0].count("\n")


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
