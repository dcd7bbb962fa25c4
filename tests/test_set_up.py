"""What ``make`` says on a machine that lacks something; nothing is installed here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("sh", "env", "uname", "tee", "sed", "grep", "tail", "rm", "make", "touch", "cat")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with the tools that set-up needs, and no Python and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        for place in os.environ["PATH"].split(os.pathsep):
            if (found := Path(place, name)).exists():
                (folder / name).symlink_to(found)
                break
    return folder


def put(folder: Path, name: str, script: str) -> None:
    """An executable that is a shell script."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def real_python(folder: Path) -> None:
    put(folder, "python3", f'exec {sys.executable} "$@"')


def set_up(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(ROOT / ".ci/set-up"), str(path.parent / "venv"), "train"],
        cwd=ROOT,
        env={"PATH": str(path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that set-up failed with."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.10"])
def test_an_old_python(path: Path, version: str) -> None:
    put(path, "python3", f"echo {version}")
    line = complaint(set_up(path))
    assert line.startswith(f"set-up: python3 is Python {version}, and 3.11 or newer is needed")
    assert "make PYTHON=" in line


def test_no_python(path: Path) -> None:
    assert complaint(set_up(path)).startswith("set-up: no Python found")


def test_a_python_given_by_name_is_the_only_one_tried(path: Path) -> None:
    real_python(path)
    put(path, "old", "echo 3.8")
    assert complaint(set_up(path, PYTHON="old")) == "set-up: PYTHON=old is Python 3.8, and 3.11 or newer is needed"
    assert complaint(set_up(path, PYTHON="nowhere")) == "set-up: PYTHON=nowhere does not run"


def test_a_python_without_venv(path: Path) -> None:
    put(path, "python3", 'case "$2" in *venv*) exit 1 ;; *) echo 3.12 ;; esac')
    assert "python3 has no venv module" in complaint(set_up(path))


def test_a_python_without_headers(path: Path) -> None:
    put(path, "python3", 'case "$2" in *Python.h*) exit 1 ;; *version_info*) echo 3.12 ;; esac')
    assert "python3 has no C headers, Python.h" in complaint(set_up(path))


@pytest.mark.parametrize("variables", [{}, {"CXX": "my++"}], ids=["searched", "named"])
def test_no_compiler(path: Path, variables: dict[str, str]) -> None:
    real_python(path)
    line = complaint(set_up(path, **variables))
    assert line.startswith("set-up: no C++ compiler: ")
    assert variables.get("CXX", "++") in line
    assert "CXX=" in line


def test_a_newer_python_is_found_where_python3_is_too_old(path: Path) -> None:
    put(path, "python3", "echo 3.9")
    put(path, "python3.12", f'exec {sys.executable} "$@"')
    assert "no C++ compiler" in complaint(set_up(path))  # so the Python was fine


def pip_that_prints(path: Path, text: str) -> None:
    """Everything is there, and pip fails with ``text``."""
    put(path, "g++", "exit 0")
    venv = path.parent / "venv" / "bin"
    venv.mkdir(parents=True)
    real_python(path)
    put(venv, "python", f'[ "$2" = pip ] || exit 0\ncat <<"E"\n{text}\nE\nexit 1')


@pytest.mark.parametrize(
    "text",
    [
        "WARNING: Retrying after connection broken by 'NewConnectionError('...')': /simple/setuptools/",
        "  ERROR: Could not find a version that satisfies the requirement setuptools>=77 (from versions: none)",
    ],
)
def test_no_network(path: Path, text: str) -> None:
    pip_that_prints(path, text)
    assert complaint(set_up(path)).startswith("set-up: no network: pip cannot reach its package index")


def test_another_failure_of_pip_is_quoted(path: Path) -> None:
    pip_that_prints(path, "ERROR: No space left on device\nmore")
    line = complaint(set_up(path))
    assert line.startswith("set-up: pip failed: No space left on device (details in ")


def test_make_stops_where_set_up_fails(path: Path, tmp_path: Path) -> None:
    put(path, "old", "echo 3.8")
    done = subprocess.run(
        ["make", "-C", str(ROOT), "train", "PYTHON=old", f"VENV={tmp_path}/venv"],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "PYTHON=old is Python 3.8" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_every_direct_dependency_is_pinned() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {Requirement(text).name for names in lists for text in names}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert wanted == set(pins)
    assert pins["torch"] == "2.13.0"
    assert pins["triton"] == "3.7.1"
