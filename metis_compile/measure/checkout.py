"""The code that numbers were measured with."""

import subprocess
from pathlib import Path

import metis_compile

__all__ = ["commit"]

PACKAGE = Path(metis_compile.__file__).resolve().parent


def commit(package: Path = PACKAGE) -> str | None:
    """The commit that the package runs from, with ``-dirty`` where its checkout was changed since; None outside one."""
    root = package.parent
    # a package that is only installed below somebody else's checkout is not of that commit
    if _git(root, "ls-files", "--error-unmatch", f"{package.name}/__init__.py") is None:
        return None
    return _git(root, "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
