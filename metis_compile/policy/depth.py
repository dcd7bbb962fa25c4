"""Places in depth: ``"first 2"``, ``"last 4"``, ``"last 15%"``, ``"3-5"`` or ``"3"``, counting blocks from 0."""

import re
from functools import lru_cache

from metis_compile.policy.errors import PolicyError, show
from metis_compile.spelling import nearest_name

_FORM = re.compile(r"(?:(first|last)\s+)?(\d{1,9})(?:\s*(%)|\s*-\s*(\d{1,9}))?", re.ASCII)
_ALLOWED = ("first 2", "last 4", "last 15%", "3-5", "3")


@lru_cache(maxsize=1024)
def parse_blocks(text: str) -> tuple[str, int, int]:
    """("first", n, 0), ("last", n, 0), the same with a "%", or ("range", first, last). Raises PolicyError otherwise."""
    form = _FORM.fullmatch(text.strip())
    if form is None or (form[1] and form[4]) or (form[3] and not form[1]):
        word = re.match(r"\s*([A-Za-z]+)", text)
        nearest = nearest_name(word[1], ("first", "last")) if word else None
        hint = f'; did you mean "{nearest} 2"?' if nearest else ""
        raise _mistake(text, f"is no place in depth{hint}", nearest)
    number = int(form[2])
    if form[1]:
        if number == 0:
            raise _mistake(text, "is no block at all")
        if form[3] and number > 100:
            raise _mistake(text, "is more than all blocks")
        return form[1] + (form[3] or ""), number, 0
    last = int(form[4]) if form[4] else number
    if last < number:
        raise _mistake(text, "runs backwards")
    return "range", number, last


def canonical_blocks(text: str) -> str:
    """The one way of writing the same place: single spaces, and "3" for "3-3"."""
    kind, first, last = parse_blocks(text)
    if kind == "range":
        return str(first) if first == last else f"{first}-{last}"
    return f"{kind.removesuffix('%')} {first}{'%' if kind.endswith('%') else ''}"


def in_blocks(text: str, index: int, count: int) -> bool:
    """Whether block ``index`` of ``count`` is in that place; a share of them is rounded up to whole blocks."""
    kind, first, last = parse_blocks(text)
    if kind.endswith("%"):
        kind, first = kind.removesuffix("%"), -(-first * count // 100)
    if kind == "first":
        return index < first
    if kind == "last":
        return index >= count - first
    return first <= index <= last


def _mistake(text: str, what: str, nearest: str | None = None) -> PolicyError:
    forms = ", ".join(show(form) for form in _ALLOWED)
    return PolicyError(
        f"{show(text)} {what}; blocks count from 0 and are written as one of {forms}",
        value=text,
        allowed=_ALLOWED,
        nearest=nearest,
    )
