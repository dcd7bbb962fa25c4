"""What a policy says when something in it is wrong."""

import json
from collections.abc import Sequence

from metis_compile.spelling import nearest_name

_MOST_SHOWN = 64  # names in one message


class PolicyError(ValueError):
    """A mistake in a policy: where it is, what was found, what is allowed, and the nearest valid name.

    The text reads ``run.toml:12: rule 2, gemm: must be one of "fprop", "dgrad", "wgrad", got "fpop"; did you
    mean "fprop"?``. Each piece is also an attribute, None where it does not apply:

    problem: what is wrong, in words.        file: the file as it was named, or the name given to a text.
    line: 1-based line in that file.         key: the place in it, such as ``rule 2, gemm``.
    value: the value found.                  allowed: the valid names.
    nearest: the valid name closest to value.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
        value: object = None,
        allowed: Sequence[str] | None = None,
        nearest: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = file
        self.line = line
        self.key = key
        self.value = value
        self.allowed = None if allowed is None else tuple(allowed)
        self.nearest = nearest
        super().__init__(self._text())

    def _text(self) -> str:
        file = f"{self.file}:{self.line}" if self.file and self.line else self.file
        key = self.key
        if key and (len(key) > 200 or not key.isprintable()):  # a key of the file's own, such as "\n"
            key = show(key)
        place = "".join(f"{part}: " for part in (file, key) if part)
        return place + self.problem

    def at(self, *, file: str | None = None, line: int | None = None, key: str | None = None) -> "PolicyError":
        """The same error with its place given, or given more exactly."""
        return PolicyError(
            self.problem,
            file=file or self.file,
            line=line or self.line,
            key=key or self.key,
            value=self.value,
            allowed=self.allowed,
            nearest=self.nearest,
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions rebuild from their args, which hold the finished text: let __dict__ bring the pieces
        # back.
        return (_restore, (self.__dict__,))


def _restore(pieces: dict[str, object]) -> PolicyError:
    error = PolicyError(str(pieces["problem"]))
    error.__dict__.update(pieces)
    error.args = (error._text(),)
    return error


def show(value: object) -> str:
    """A value the way a TOML file writes it, cut to a readable length."""
    try:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except TypeError:
            text = str(value)
    except (ValueError, RecursionError):  # of thousands of digits, or deeply nested
        text = f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= 120 else text[:117] + "..."


def unknown_name(value: object, allowed: Sequence[str], *, key: str | None = None, of: str = "") -> PolicyError:
    """The error for a value that is not one of a fixed set of names; ``of`` says whose names they are."""
    nearest = nearest_name(value, allowed)
    names = ", ".join(show(name) for name in allowed[:_MOST_SHOWN])
    if len(allowed) > _MOST_SHOWN:
        names += f" and {len(allowed) - _MOST_SHOWN} more"
    one_of = "one of " if len(allowed) > 1 else ""
    problem = f"must be {one_of}{names}{f' for {of}' if of else ''}, got {show(value)}"
    if nearest is not None:
        problem += f"; did you mean {show(nearest)}?"
    return PolicyError(problem, key=key, value=value, allowed=allowed, nearest=nearest)


def unknown_key(what: str, key: str, allowed: Sequence[str]) -> PolicyError:
    """The error for a key that does not exist in this place."""
    nearest = nearest_name(key, allowed)
    hint = f"; did you mean {show(nearest)}?" if nearest else ""
    problem = f"unknown key {show(key)}; {what} has the keys {', '.join(allowed)}{hint}"
    return PolicyError(problem, value=key, allowed=allowed, nearest=nearest)
