"""How far some worker processes are: a bar for all and one for each that runs, or lines without a terminal."""

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Bars", "JobProgress"]


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
    """Shows ``count`` jobs on ``console``. A context manager; its methods may be called from any thread."""

    def __init__(self, console: Console, count: int) -> None:
        super().__init__(console)
        self.count = count
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._ended = 0
        self._all = self._bar.add_task("all", total=count, note="")

    def began(self, label: str, steps: int) -> None:
        """A job has started that will take so many steps."""
        with self._lock:
            self._tasks[label] = self._bar.add_task(label, total=steps, note="compiling")

    def stepped(self, label: str, done: int, note: str) -> None:
        """``done`` of its steps are behind it."""
        with self._lock:
            self._bar.update(self._tasks[label], completed=done, note=note)

    def ended(self, label: str, how: str) -> None:
        """A job is over."""
        with self._lock:
            self._ended += 1
            self._bar.remove_task(self._tasks.pop(label))
            self._bar.update(self._all, completed=self._ended)
            self.note(f"{self._ended}/{self.count} {label}: {how}")
