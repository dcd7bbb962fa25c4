import subprocess
from pathlib import Path

import pytest

import metis_compile
from metis_compile.measure import repository
from metis_compile.measure.machine import machine

NOTHING = {"commit": None, "dirty": None}


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """In a repository of one commit."""
    made = tmp_path / "repository" / "package"
    made.mkdir(parents=True)
    (made / "__init__.py").write_text("")
    git(made.parent, "init", "-q")
    git(made.parent, "add", ".")
    git(made.parent, "commit", "-q", "-m", "one")
    return made


def test_the_commit_and_whether_the_package_is_as_in_it(package: Path) -> None:
    commit = git(package.parent, "rev-parse", "HEAD")
    (package.parent / "results.json").write_text("beside the package")
    assert repository.commit_of(package) == {"commit": commit, "dirty": False}
    link = package.parent.parent / "link"
    link.symlink_to(package)
    assert repository.commit_of(link) == {"commit": commit, "dirty": False}
    (package / "new.py").write_text("")
    assert repository.commit_of(package) == {"commit": commit, "dirty": True}


def test_a_package_of_no_repository(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = package.parent / ".venv" / "package"
    for folder in (tmp_path / "outside", installed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        assert repository.commit_of(folder) == NOTHING
    git(package.parent, "update-ref", "-d", "HEAD")  # a repository without a commit
    assert repository.commit_of(package) == NOTHING
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert repository.commit_of(package) == NOTHING


def test_the_machine_says_the_commit_of_the_package() -> None:
    found = repository.commit_of(Path(metis_compile.__file__).parent)
    assert found.items() <= machine().items()
