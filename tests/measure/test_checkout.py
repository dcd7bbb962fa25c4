"""The commit that numbers were measured with, in a repository made for it."""

import subprocess
from pathlib import Path

import pytest

from metis_compile.measure.checkout import commit


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "-am", "a tag", "v1")
    return tmp_path / "mine"


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false")
    run = ["git", "-C", str(root), *who, *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_a_checkout(package: Path) -> None:
    assert commit(package) == git(package, "rev-parse", "HEAD")[:12]


def test_what_was_changed_since_is_said(package: Path) -> None:
    (package / "__init__.py").write_text("changed = True\n")
    assert commit(package) == git(package, "rev-parse", "HEAD")[:12] + "-dirty"


def test_a_package_that_only_lies_in_a_checkout_has_none(package: Path) -> None:
    other = package.parent / "other"
    other.mkdir()
    (other / "__init__.py").write_text("")
    assert commit(other) is None


def test_no_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path / "mine") is None
