"""Two versions of a stand-in for the package, in a repository made for the test."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import revision
import typer
from long_tail import sampled
from typer.testing import CliRunner

from metis_compile.bench.errors import BenchError
from metis_compile.measure.interrupt import StopRequest
from metis_compile.measure.progress import JobProgress

BACKEND = """
import time
def metis(gm, inputs, *, options):
    assert options["policy"] == "nvfp4"
    def run(*args):
        time.sleep({seconds})
        return gm.forward(*args)
    return run
"""


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A repository of two commits: v1, whose compiled code takes longer, and what is checked out."""
    root = tmp_path / "repository"
    made = root / "metis_compile"
    made.mkdir(parents=True)
    git(tmp_path, "init", "-q", str(root))
    (root / "README").write_text("nothing yet")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "zero")
    git(root, "tag", "v0")
    (made / "__init__.py").write_text("")
    for tag, seconds in (("v1", 0.2), ("v2", 0.0)):
        (made / "backend.py").write_text(BACKEND.format(seconds=seconds))
        git(root, "add", ".")
        git(root, "commit", "-q", "-m", tag)
        git(root, "tag", tag)
    return made


@pytest.fixture
def measured(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in is the package that is measured."""
    commit_of, checked_out = revision.commit_of, revision.checked_out
    monkeypatch.setattr(revision, "PACKAGE", package)
    monkeypatch.setattr(revision, "commit_of", lambda name: commit_of(name, package))
    monkeypatch.setattr(revision, "checked_out", lambda commit: checked_out(commit, package))
    return package


def test_a_commit_by_any_of_its_names(package: Path) -> None:
    head = git(package.parent, "rev-parse", "HEAD")
    assert revision.commit_of("v2", package) == revision.commit_of("HEAD", package) == head
    assert revision.commit_of("HEAD~1", package) == git(package.parent, "rev-parse", "v1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v3", r"baseline must be a commit of .*repository, got 'v3'"),
        ("--all", r"baseline must be a commit of .*, got '--all'"),
        ("v0", r"must be a commit that has metis_compile/backend.py, got 'v0'"),
    ],
)
def test_what_names_no_commit_of_the_package(package: Path, name: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        revision.commit_of(name, package)


def test_an_installed_package_is_in_no_checkout(package: Path, tmp_path: Path) -> None:
    for root in (tmp_path / "outside", package.parent / "inside"):  # a virtual environment may lie in a checkout
        installed = root / "metis_compile"
        installed.mkdir(parents=True)
        (installed / "__init__.py").write_text("")
        with pytest.raises(BenchError, match="needs metis_compile to run from a git checkout of it"):
            revision.commit_of("HEAD", installed)


def test_the_commit_is_checked_out_beside_and_cleaned_up(package: Path) -> None:
    with revision.checked_out(revision.commit_of("v1", package), package) as path:
        assert "sleep(0.2)" in (path / "metis_compile" / "backend.py").read_text()
        assert [p.name for p in path.iterdir()] == ["metis_compile"]  # and nothing else of the checkout
        assert git(package.parent, "worktree", "list").count("\n") == 1
    assert not path.exists()
    assert git(package.parent, "worktree", "list").count("\n") == 0
    assert "sleep(0.0)" in (package / "backend.py").read_text()


def test_both_versions_take_steps_in_turn(
    package: Path, settings: Any, options: Any, console: Any, tmp_path: Path
) -> None:
    now = revision.alone(package, tmp_path / "now")
    with (
        revision.checked_out(revision.commit_of("v1", package), package) as before,
        JobProgress(console, 1) as progress,
    ):
        progress.began("nvfp4", 4)
        paths = {"now": now, "before": before}
        times = revision.rounds_of(paths, "nvfp4", settings(), options, "nvfp4", progress, StopRequest())
        assert times is not None
    assert {side: len(seconds) for side, seconds in times.items()} == {"now": 2, "before": 2}
    assert min(times["before"]) >= 0.2
    assert min(times["now"]) < 0.2


def test_what_a_process_dies_of_is_told(
    package: Path, settings: Any, options: Any, console: Any, tmp_path: Path
) -> None:
    (package / "backend.py").write_text("raise ImportError('no such thing')")
    paths = {"now": revision.alone(package, tmp_path / "now")}
    with JobProgress(console, 1) as progress, pytest.raises(RuntimeError, match="ImportError: no such thing"):
        revision.rounds_of(paths, "nvfp4", settings(), options, "nvfp4", progress, StopRequest())


def test_the_report(measured: Path, settings: Any, options: Any, console: Any, monkeypatch: Any) -> None:
    def rounds_of(paths: Any, text: str, *_: Any) -> dict[str, list[float]]:
        assert set(paths) == {"now", "before"}
        if text == "mxfp4":
            raise RuntimeError("out of memory")
        return {"now": [1.0, 2.0], "before": [2.0, 4.0]}

    monkeypatch.setattr(revision, "rounds_of", rounds_of)
    report = revision.bench_revision(["nvfp4", "mxfp4"], [settings()], "v1", options, console)
    assert report.cells == [["nvfp4", "16", "3000.0 ms", "1500.0 ms", "0.50x (0.50-0.50)"]]
    assert report.numbers["baseline"]["revision"] == "v1"
    assert [f.reason for f in report.measured.failures] == ["out of memory"]
    assert list(report.measured.results) == ["nvfp4, width 16"]
    with pytest.raises(BenchError, match="a baseline takes policies alone"):
        revision.bench_revision(["metis+reparametrized"], [settings()], "v1", options, console)


def test_the_command_line(measured: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--width=16", "--layers=1", "--tokens=32", "--threads=1", "--device=cpu", "--rounds=2"]
    app = typer.Typer()
    app.command()(revision.main)
    result = CliRunner().invoke(app, ["v1", "nvfp4", *tiny])
    assert result.exit_code == 0, result.output
    assert "this checkout" in result.stdout
    numbers = json.loads(Path("runs/bench/baseline.json").read_text())
    assert numbers["baseline"] == {"revision": "v1", "commit": git(measured.parent, "rev-parse", "v1")}
    (row,) = numbers["rows"]
    assert row["policy"] == "nvfp4"
    assert row["ratio"]["median"] < 1
    assert {len(seconds) for seconds in row["times"].values()} == {2}
    assert sorted(path.name for path in Path("runs/bench").iterdir()) == [
        "baseline.json",
        "baseline.md",
        "baseline.png",
    ]


@pytest.mark.parametrize("number", sampled([signal.SIGINT, signal.SIGTERM], [signal.SIGTERM]))
def test_a_stop_keeps_what_is_done_and_leaves_no_checkout(
    measured: Path, settings: Any, options: Any, console: Any, monkeypatch: Any, number: int
) -> None:
    sizes, rounds = [settings(), settings(width=32), settings(width=64)], 2 + options.rounds
    seen = []

    def stepped(progress: JobProgress, label: str, done: int, note: str) -> None:
        seen.append(label)
        if len(seen) == rounds + 1:
            assert git(measured.parent, "worktree", "list").count("\n") == 1
            os.kill(os.getpid(), number)

    monkeypatch.setattr(JobProgress, "stepped", stepped)
    before = signal.getsignal(number)
    report = revision.bench_revision(["nvfp4"], sizes, "v1", options, console)
    assert report.measured.signal == number
    assert seen == ["nvfp4, width 16"] * rounds + ["nvfp4, width 32"]
    assert [row[1] for row in report.cells] == ["16"]
    assert git(measured.parent, "worktree", "list").count("\n") == 0
    assert signal.getsignal(number) == before
