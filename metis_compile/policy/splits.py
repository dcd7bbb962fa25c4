"""The split of a treatment: from what a file says to a conditioning, and back."""

import hashlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from metis_compile.conditioning.base import Conditioning, as_conditioning
from metis_compile.conditioning.chain import Chain
from metis_compile.conditioning.registry import KINDS, conditioning_class, kind_of, settings_of, steps_of
from metis_compile.policy.errors import PolicyError, show, unknown_key, unknown_name


def read_split(given: object) -> Conditioning:
    """A conditioning from a kind's name, a table, a list of both, or a conditioning. Raises PolicyError.

    The error's key is the path of what is wrong, such as "split.1.rank" for the rank of the second of a list.
    """
    if isinstance(given, (list, tuple)):
        if not given:
            raise PolicyError("is an empty list; leave it out to split nothing", key="split", value=given)
        steps = [_read_one(entry, f"split.{index}") for index, entry in enumerate(given)]
        if len(steps) == 1:
            return steps[0]
        try:
            return Chain(steps=tuple(steps))
        except Exception as error:  # what it reads of a class of the user's own may raise any
            raise PolicyError(_said(error), key="split", value=given) from None
    return _read_one(given, "split")


def _read_one(given: object, key: str) -> Conditioning:
    if isinstance(given, str):
        given = {"kind": given}
    if not isinstance(given, Mapping):
        if callable(getattr(given, "split", None)):
            return _checked(_whole(given, key), key)
        problem = f"must be a kind of split, a table with a kind, or a list of these, got {show(given)}"
        raise PolicyError(problem, key=key, value=given)
    if "kind" not in given:
        raise PolicyError('a split must have a kind, such as kind = "mean"', key=f"{key}.kind", allowed=("kind",))
    kind = given["kind"]
    if not isinstance(kind, str) or (":" not in kind and kind not in KINDS):
        raise unknown_name(kind, [*KINDS, "package.module:Class"], key=f"{key}.kind")
    try:
        found = conditioning_class(kind)
    except Exception as error:  # a class of the user's own may raise any
        raise PolicyError(_said(error), key=f"{key}.kind", value=kind) from None
    names = [field.name for field in fields(found)]
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    del settings["kind"]
    for name in settings:
        if name not in names:
            raise unknown_key(f"a {kind} split", name, ["kind", *names]).at(key=f"{key}.{name}")
    try:
        return _checked(found(**settings), key)
    except PolicyError:
        raise
    except Exception as error:
        wrong = next((name for name in settings if str(error).startswith(f"{name} ")), None)
        place = key if wrong is None else f"{key}.{wrong}"
        raise PolicyError(_said(error), key=place, value=settings if wrong is None else settings[wrong]) from None


def _whole(given: Any, key: str) -> Conditioning:
    try:
        return as_conditioning(given)
    except Exception as error:  # a class of the user's own may raise any
        raise PolicyError(_said(error), key=key, value=repr(given)) from None


def _said(error: Exception) -> str:
    """What an exception says; of a kind that has no sentence of its own, such as KeyError, with its name."""
    return str(error) if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: {error}"


def _checked(conditioning: Conditioning, key: str) -> Conditioning:
    """The conditioning, if a policy that holds it can be hashed and written to a file."""
    for step in steps_of(conditioning):
        for name, value in settings_of(step).items():
            entries = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(entry, (str, int, float)) and entry == entry for entry in entries):  # no NaN
                problem = f"{name} must be a text, a number, true or false, or a tuple of these, got {value!r}"
                raise PolicyError(problem, key=f"{key}.{name}", value=repr(value))
    return conditioning


def split_tables(conditioning: Conditioning) -> list[dict[str, Any]]:
    """One table for each step, "kind" first: what :func:`read_split` reads back as an equal conditioning."""
    return [{"kind": kind_of(step), **settings_of(step)} for step in steps_of(conditioning)]


def split_meaning(conditioning: Conditioning) -> list[object]:
    """The tables and, of classes that are not built in, the source of their modules: what a digest is made of."""
    tables = split_tables(conditioning)
    return [[table, _source_hash(step)] for table, step in zip(tables, steps_of(conditioning), strict=True)]


def _source_hash(step: Conditioning) -> str | None:
    if type(step) in KINDS.values():
        return None
    try:
        source = inspect.getsource(sys.modules[type(step).__module__])
    except (OSError, TypeError, KeyError):  # defined at a prompt: its name has to do
        return ""
    return hashlib.sha256(source.encode()).hexdigest()
