"""What is said of worker processes while they run, and how long it takes to the end."""

import io
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from metis_compile.measure.progress import EVERY, JobProgress
from metis_compile.measure.remaining import Remaining, duration
from metis_compile.measure.schedule import Job, run_jobs


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> Iterator[tuple[JobProgress, Callable[[], list[str]]]]:
    """A progress of two jobs without a terminal, and what it has printed since last asked."""
    output = io.StringIO()

    def new() -> list[str]:
        text = output.getvalue()
        output.seek(0)
        output.truncate()
        return text.splitlines()

    with JobProgress(Console(file=output), 2, clock=clock) as progress:
        yield progress, new


def test_nothing_is_known_before_a_round_without_the_compiler() -> None:
    left = Remaining(2)
    left.began("a", 5, 0.0)
    left.stepped("a", 1, 20.0)
    assert left.seconds(20.0) is None
    left.stepped("a", 2, 22.0)
    # 3 rounds of 2 s, and another job of 20 s and 4 rounds
    assert left.seconds(22.0) == 6.0 + 28.0
    assert left.seconds(23.0) == 5.0 + 28.0
    left.stepped("a", 5, 34.0)  # slower than that: 14 s in 4 rounds
    left.ended("a", 34.0)
    assert left.seconds(34.0) == 34.0


def test_jobs_at_once_share_the_time() -> None:
    left = Remaining(4, at_once=2)
    left.began("a", 1, 0.0)
    left.began("b", 1, 0.0)
    left.ended("a", 10.0)
    assert left.seconds(10.0) == (0.0 + 2 * 10.0) / 2
    left.began("c", 1, 10.0)
    assert left.seconds(12.0) == (0.0 + 8.0 + 10.0) / 2


def test_a_job_of_many_steps_is_not_over_before_its_last() -> None:
    left = Remaining(1, at_once=2)
    left.began("a", 11, 0.0)
    left.stepped("a", 1, 1.0)
    left.stepped("a", 2, 2.0)
    assert left.seconds(2.0) == 9.0


def test_durations() -> None:
    assert [duration(s) for s in (4.4, 89.0, 91.0, 7100.0, 12000.0)] == [
        "4 s",
        "89 s",
        "2 min",
        "118 min",
        "3 h 20 min",
    ]


def test_lines_without_a_terminal(lines: tuple[JobProgress, Callable[[], list[str]]], clock: Clock) -> None:
    progress, new = lines
    progress.began("nvfp4", 5)
    assert new() == ["nvfp4: compiling"]
    clock.now = EVERY - 1
    progress.waited()
    assert new() == []
    clock.now = EVERY
    progress.waited()
    assert new() == ["nvfp4: compiling, 30 s so far"]
    clock.now = 40.0
    progress.stepped("nvfp4", 1, "")
    assert new() == []
    clock.now = 50.0
    progress.stepped("nvfp4", 2, "")
    assert new() == ["about 2 min left"]  # 3 rounds of 10 s, and 40 + 4 * 10 s
    clock.now = 60.0
    progress.stepped("nvfp4", 3, "loss 2.1")
    assert new() == []
    clock.now = 80.0
    progress.waited()
    assert new() == ["nvfp4: 3/5 loss 2.1, 80 s so far; about 80 s left"]
    progress.ended("nvfp4", "done")
    assert new() == ["1/2 nvfp4: done; about 80 s left"]
    progress.began("best", 5)
    progress.ended("best", "out of memory")
    assert new() == ["best: compiling", "2/2 best: out of memory"]
    clock.now += EVERY
    progress.waited()
    assert new() == []


def test_on_a_terminal_bars_move_and_the_length_is_a_line(clock: Clock) -> None:
    output = io.StringIO()
    with JobProgress(Console(file=output, force_terminal=True, width=120), 1, clock=clock) as progress:
        progress.began("nvfp4", 5)
        clock.now = 100.0
        progress.waited()
        progress.stepped("nvfp4", 1, "")
        clock.now = 130.0
        progress.stepped("nvfp4", 2, "")
        progress.ended("nvfp4", "done")
    text = output.getvalue()
    assert text.count("about 2 min left") == 1
    assert "so far" not in text


def test_a_worker_that_says_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler itself tells the progress that time has passed."""
    output = io.StringIO()
    monkeypatch.setattr("metis_compile.measure.progress.EVERY", 0.0)
    job = Job(label="silent", worker="keyword", request={}, steps=1, threads=1)  # a module that prints nothing
    with JobProgress(Console(file=output), 1) as progress:
        run_jobs([job], at_once=1, progress=progress)
    assert "silent: compiling, 0 s so far" in output.getvalue()
