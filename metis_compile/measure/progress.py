"""How far some worker processes are: a bar for all and one for each that runs, or lines without a terminal."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from metis_compile.measure.remaining import Remaining, duration

__all__ = ["Bars", "JobProgress"]

EVERY = 30.0  # seconds after which there is another line where there is no terminal


class Bars:
    """Bars with a note beside each, where ``console`` is a terminal. A context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class JobProgress(Bars):
    """Shows ``count`` jobs on ``console``, ``at_once`` of them at any time, and how long they will still take.

    The length is said as soon as it can be told: with the first round after the one that compiles. Without a terminal
    there is a line whenever a job begins and ends, and one every 30 seconds. A context manager; its methods may be
    called from any thread.
    """

    def __init__(
        self, console: Console, count: int, *, at_once: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(console)
        self.count = count
        self._lock = threading.Lock()
        self._clock, self._said = clock, clock()
        self._remaining = Remaining(count, at_once)
        self._length_said = False
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._far: dict[str, str] = {}  # for people, of each job that runs
        self._warnings: set[str] = set()
        self._ended = 0
        self._all = self._bar.add_task("all", total=count, note="")

    def began(self, label: str, steps: int) -> None:
        """A job has started that will take so many steps."""
        with self._lock:
            self._tasks[label] = self._bar.add_task(label, total=steps, note="compiling")
            self._totals[label], self._far[label] = steps, "compiling"
            self._remaining.began(label, steps, self._clock())
            if not self.console.is_terminal:
                self._line(f"{label}: compiling")

    def stepped(self, label: str, done: int, note: str) -> None:
        """``done`` of its steps are behind it."""
        with self._lock:
            self._bar.update(self._tasks[label], completed=done, note=note)
            self._far[label] = f"{done}/{self._totals[label]}" + (f" {note}" if note else "")
            now = self._clock()
            self._remaining.stepped(label, done, now)
            if not self._length_said and (left := self._left(now)):
                self._line(left)
        self.waited()

    def warned(self, label: str, text: str) -> None:
        """A job warns of something; the same text is said once, of the first job that has it."""
        with self._lock:
            if text not in self._warnings:
                self._warnings.add(text)
                self._line(f"{label}: warning: {text}")

    def waited(self) -> None:
        """Time has passed: without a terminal, a line now and then says how far the jobs are."""
        with self._lock:
            now = self._clock()
            if self.console.is_terminal or now - self._said < EVERY:
                return
            far = [
                f"{label}: {far}, {duration(self._remaining.took(label, now))} so far"
                for label, far in self._far.items()
            ]
            if far:
                self._line("; ".join([*far, *filter(None, [self._left(now)])]))

    def ended(self, label: str, how: str) -> None:
        """A job is over."""
        with self._lock:
            self._ended += 1
            self._bar.remove_task(self._tasks.pop(label))
            self._bar.update(self._all, completed=self._ended)
            self._far.pop(label)
            now = self._clock()
            self._remaining.ended(label, now)
            left = self._left(now) if self._ended < self.count else ""
            self._line(f"{self._ended}/{self.count} {label}: {how}" + (f"; {left}" if left else ""))

    def _left(self, now: float) -> str:
        """How long it will still take, for people; nothing where that can't be told yet."""
        seconds = self._remaining.seconds(now)
        if seconds is None:
            return ""
        self._length_said = True
        return f"about {duration(seconds)} left"

    def _line(self, text: str) -> None:
        self._said = self._clock()
        self.note(text)
