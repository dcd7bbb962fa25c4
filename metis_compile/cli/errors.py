"""A user's mistake is one line on stderr and exit status 2; anything else keeps its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["UserError", "user_errors"]


class UserError(Exception):
    """Something the user can put right; the message is one line."""


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn UserError, and the ``kinds`` given, into one line and exit status 2."""
    caught: tuple[type[Exception], ...] = (UserError, *kinds)
    try:
        yield
    except caught as error:
        typer.echo(f"metis: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
