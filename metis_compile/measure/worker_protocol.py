"""What a worker process tells the one that started it: a JSON object a line, on stdout."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["emit", "emits_warnings"]

log = logging.getLogger("metis_compile")


def emit(**values: Any) -> None:
    """Print one line: step= and note= after each step; last of all done=, interrupted= or error=."""
    print(json.dumps(values), flush=True)


@contextmanager
def emits_warnings(category: type[Warning]) -> Iterator[None]:
    """Within: a warning of this kind, or of our log, is a line too, warning=: a worker's stderr is read if it fails."""
    handler = _Lines(logging.WARNING)
    log.addHandler(handler)
    with warnings.catch_warnings():
        otherwise = warnings.showwarning

        def show(message: Any, kind: Any, *where: Any, **more: Any) -> None:
            if issubclass(kind, category):
                emit(warning=str(message))
            else:
                otherwise(message, kind, *where, **more)

        warnings.showwarning = show  # type: ignore[assignment]
        try:
            yield
        finally:
            log.removeHandler(handler)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        emit(warning=record.getMessage())
