"""The folder that a command writes its results to: tried before the work, and every failure to write in one line."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_folder", "writing"]

TRIED = bytes(2**16)  # what is written to see whether the folder takes anything at all


def check_folder(folder: Path, error: type[Exception], *, keep: bool = True) -> None:
    """Make the folder and write a file in it, which is removed again. Raises ``error`` where that fails.

    Call it before work whose results are to be kept in it: a read-only folder or a full disk then shows at once.
    keep: whether the folder stays where it was not there before, for work that may still fail and leave nothing.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise error(f"cannot make the folder {folder}: {_reason(problem)}") from None
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(TRIED)
            os.fsync(file.fileno())
    except OSError as problem:
        raise error(f"cannot write in the folder {folder}: {_reason(problem)}") from None
    for path in [] if keep else made:
        path.rmdir()


@contextmanager
def writing(path: Path, error: type[Exception]) -> Iterator[None]:
    """Within: an OSError becomes ``error``, which names the file that it was about, or ``path``."""
    try:
        yield
    except OSError as problem:
        raise error(f"cannot write {problem.filename or path}: {_reason(problem)}") from None


def _reason(problem: OSError) -> str:
    return problem.strerror or " ".join(str(problem).split()) or type(problem).__name__
