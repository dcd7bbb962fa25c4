"""The valid name that somebody may have meant, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

__all__ = ["did_you_mean", "nearest_name"]

_LONGEST_NAME = 64  # characters of a name that is compared by spelling
_MOST_NAMES = 2048  # that a name is compared with


def nearest_name(value: object, names: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """The name closest to `value` by spelling, letter case aside; None if none is close, or value is no text.

    Long texts are close to none, and of many names the first are looked at: comparing takes the product of the lengths.
    """
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        return None
    by_case = {name.casefold(): name for name in islice(names, _MOST_NAMES) if len(name) <= _LONGEST_NAME}
    found = difflib.get_close_matches(value.casefold(), list(by_case), n=1, cutoff=cutoff)
    return by_case[found[0]] if found else None


def did_you_mean(value: object, names: Iterable[str], *, cutoff: float = 0.5) -> str:
    """ "; did you mean 'nvfp4'?", or nothing: the end of an error's sentence."""
    near = nearest_name(value, names, cutoff=cutoff)
    return "" if near is None else f"; did you mean {near!r}?"
