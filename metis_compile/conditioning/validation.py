"""Checks of a conditioning's settings, in the words of an error that a policy file's reader understands."""

from __future__ import annotations

from collections.abc import Sequence

from metis_compile.spelling import did_you_mean


def check_name(field: str, value: object, allowed: Sequence[str]) -> None:
    """Raises ValueError, with the nearest name, unless `value` is one of `allowed`."""
    if value in allowed:
        return
    hint = did_you_mean(str(value), allowed, cutoff=0.4)
    raise ValueError(f"{field} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}")


def check_flag(field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{field} must be true or false, got {value!r}")


def check_count(field: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{field} must be a whole number, {least} or more, got {value!r}")


def check_share(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{field} must be a share above 0 and up to 1, got {value!r}")
