"""The valid name that somebody may have meant, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest_name"]


def nearest_name(value: object, names: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """The name closest to `value` by spelling, letter case aside; None if none is close, or value is no text."""
    if not isinstance(value, str):
        return None
    by_case = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(value.casefold(), list(by_case), n=1, cutoff=cutoff)
    return by_case[found[0]] if found else None


def did_you_mean(value: object, names: Iterable[str], *, cutoff: float = 0.5) -> str:
    """ "; did you mean 'nvfp4'?", or nothing: the end of an error's sentence."""
    near = nearest_name(value, names, cutoff=cutoff)
    return "" if near is None else f"; did you mean {near!r}?"
