"""Globs over dotted module names.

``*`` any characters, dots included; ``{a,b}`` either of them; ``{0..3}`` a range of whole numbers, both ends
included. A leading ``*.`` also matches nothing, so that ``*.lm_head`` matches ``lm_head``. A glob matches the
whole name, and letter case counts.

A glob is matched from left to right with the set of places in the name that can be reached, so that the time is at most
the product of the two lengths, however many stars and braces there are. (A regular expression backtracks, and takes
``"*a" * 30`` exponential time.)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from metis_compile.policy.errors import PolicyError, show

_ALLOWED = "a module glob holds a dotted name with *, {a,b} or {0..3}"
_LARGEST_RANGE = 10_000  # numbers; no model has as many blocks, so that more are a slip
_LONGEST = 1000

_Places = set[int]  # in a name: how far a part of the glob can have matched it


class _Star:
    def after(self, name: str, places: _Places) -> _Places:
        return set(range(min(places), len(name) + 1))


@dataclass(frozen=True)
class _Text:
    text: str

    def after(self, name: str, places: _Places) -> _Places:
        return {place + len(self.text) for place in places if name.startswith(self.text, place)}


@dataclass(frozen=True)
class _Range:
    first: int
    last: int

    def after(self, name: str, places: _Places) -> _Places:
        return {end for place in places for end in self._ends(name, place)}

    def _ends(self, name: str, place: int) -> list[int]:
        if name.startswith("0", place):  # numbers are written without leading zeros
            return [place + 1] if self.first == 0 else []
        ends = []
        for end in range(place + 1, min(place + len(str(self.last)), len(name)) + 1):
            if not "0" <= name[end - 1] <= "9":
                break
            if self.first <= int(name[place:end]) <= self.last:
                ends.append(end)
        return ends


@dataclass(frozen=True)
class _Either:
    choices: "tuple[tuple[_Part, ...], ...]"

    def after(self, name: str, places: _Places) -> _Places:
        return {end for choice in self.choices for end in _after(choice, name, places)}


_Part = _Star | _Text | _Range | _Either


def _after(parts: Sequence[_Part], name: str, places: _Places) -> _Places:
    for part in parts:
        if not places:
            break
        places = part.after(name, places)
    return places


@dataclass(frozen=True)
class Glob:
    """A parsed glob."""

    text: str
    _parts: tuple[_Part, ...] = field(repr=False)
    _anywhere: bool = field(repr=False)  # it begins with "*."

    def fullmatch(self, name: str) -> bool:
        """Whether the glob matches the whole of ``name``."""
        places = {0}
        if self._anywhere:
            places |= {at + 1 for at, character in enumerate(name) if character == "."}
        return len(name) in _after(self._parts, name, places)


@lru_cache(maxsize=1024)
def compile_glob(glob: str) -> Glob:
    """The glob, parsed. Raises PolicyError if it is malformed."""
    if len(glob) > _LONGEST:
        raise _mistake(glob, f"is longer than {_LONGEST} characters")
    anywhere = glob.startswith("*.")
    rest = glob[2:] if anywhere else glob
    parts: list[_Part] = []
    at = 0
    while at < len(rest):
        character = rest[at]
        if character == "{":
            end = rest.find("}", at)
            if end < 0:
                raise _mistake(glob, "has a { that is not closed")
            parts.append(_alternatives(glob, rest[at + 1 : end]))
            at = end + 1
            continue
        end = at
        while end < len(rest) and rest[end] not in "{*":
            if rest[end] == "}":
                raise _mistake(glob, "has a } without its {")
            if rest[end] in "?[]()|^$\\+/," or rest[end].isspace():
                raise _mistake(glob, f"has {show(rest[end])}, which means nothing in it")
            end += 1
        if end > at:
            parts.append(_Text(rest[at:end]))
        else:
            parts.append(_Star())
            end = at + 1
        at = end
    return Glob(glob, tuple(parts), anywhere)


def _alternatives(glob: str, inside: str) -> _Either:
    if "{" in inside:
        raise _mistake(glob, "has braces inside braces")
    return _Either(tuple(_choice(glob, part.strip()) for part in inside.split(",")))


def _choice(glob: str, part: str) -> tuple[_Part, ...]:
    if not part:
        raise _mistake(glob, "has an empty alternative in its braces")
    if ".." in part:
        ends = re.fullmatch(r"(\d+)\.\.(\d+)", part, re.ASCII)
        if ends is None:
            raise _mistake(glob, f"has {show(part)}, which is not a range of whole numbers such as 0..3")
        first, last = int(ends[1]), int(ends[2])
        if last < first:
            raise _mistake(glob, f"has the range {first}..{last}, which runs backwards")
        if last - first >= _LARGEST_RANGE:
            raise _mistake(glob, f"has the range {first}..{last}, of more than {_LARGEST_RANGE} numbers")
        return (_Range(first, last),)
    parts: list[_Part] = []
    for index, piece in enumerate(part.split("*")):
        if index:
            parts.append(_Star())
        if piece:
            parts.append(_Text(piece))
    return tuple(parts)


def _mistake(glob: str, what: str) -> PolicyError:
    return PolicyError(f"{show(glob)} {what}; {_ALLOWED}", value=glob)
