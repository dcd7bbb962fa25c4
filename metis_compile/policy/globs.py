"""Globs over dotted module names.

``*`` any characters, dots included; ``{a,b}`` either of them; ``{0..3}`` a range of whole numbers, both ends
included. A leading ``*.`` also matches nothing, so that ``*.lm_head`` matches ``lm_head``. A glob matches the
whole name, and letter case counts.
"""

import re
from functools import lru_cache

from metis_compile.policy.errors import PolicyError, show

_ALLOWED = "a module glob holds a dotted name with *, {a,b} or {0..3}"
_LARGEST_RANGE = 10_000  # a range becomes that many alternatives


@lru_cache(maxsize=1024)
def compile_glob(glob: str) -> re.Pattern[str]:
    """The regular expression that a module name must match fully. Raises PolicyError on a malformed glob."""
    rest, pattern = glob, ""
    if rest.startswith("*."):
        rest, pattern = rest[2:], r"(?:.*\.)?"
    at = 0
    while at < len(rest):
        character = rest[at]
        if character == "{":
            end = rest.find("}", at)
            if end < 0:
                raise _mistake(glob, "has a { that is not closed")
            pattern += _alternatives(glob, rest[at + 1 : end])
            at = end + 1
            continue
        if character == "}":
            raise _mistake(glob, "has a } without its {")
        if character in "?[]()|^$\\+/," or character.isspace():
            raise _mistake(glob, f"has {show(character)}, which means nothing in it")
        pattern += ".*" if character == "*" else re.escape(character)
        at += 1
    return re.compile(pattern, re.DOTALL)


def _alternatives(glob: str, inside: str) -> str:
    if "{" in inside:
        raise _mistake(glob, "has braces inside braces")
    choices = []
    for part in inside.split(","):
        part = part.strip()
        if not part:
            raise _mistake(glob, "has an empty alternative in its braces")
        if ".." in part:
            offs = re.fullmatch(r"(\d+)\.\.(\d+)", part, re.ASCII)
            if offs is None:
                raise _mistake(glob, f"has {show(part)}, which is not a range of whole numbers such as 0..3")
            first, last = int(offs[1]), int(offs[2])
            if last < first:
                raise _mistake(glob, f"has the range {first}..{last}, which runs backwards")
            if last - first >= _LARGEST_RANGE:
                raise _mistake(glob, f"has the range {first}..{last}, of more than {_LARGEST_RANGE} numbers")
            choices += [str(number) for number in range(first, last + 1)]
        else:
            choices += [".*".join(re.escape(piece) for piece in part.split("*"))]
    return f"(?:{'|'.join(choices)})"


def _mistake(glob: str, what: str) -> PolicyError:
    return PolicyError(f"{show(glob)} {what}; {_ALLOWED}", value=glob)
