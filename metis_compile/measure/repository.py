"""The commit that a package which lies in a git checkout is of."""

import subprocess
from pathlib import Path

__all__ = ["commit_of", "git"]


def git(folder: Path, *arguments: str) -> str | None:
    """What git prints in ``folder``, None where it fails. Raises FileNotFoundError where there is no git."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def commit_of(package: Path) -> dict[str, str | bool | None]:
    """{"commit", "dirty"} of the repository that has this folder's __init__.py; None each where there is none.

    dirty: whether the folder holds something that is not in the commit. What lies beside it does not count: results
    of measurements may.
    """
    root, name = package.resolve().parent, package.resolve().name
    nothing: dict[str, str | bool | None] = {"commit": None, "dirty": None}
    try:
        # A virtual environment may lie in a checkout of something else.
        if git(root, "ls-files", "--error-unmatch", f"{name}/__init__.py") is None:
            return nothing
        commit, changes = git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain", "--", name)
    except FileNotFoundError:
        return nothing
    return nothing if commit is None else {"commit": commit, "dirty": changes != ""}
