"""What a run shows while it goes: a bar with both losses, or lines where there is no terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["RunProgress"]

LINES = 20  # about how many lines a run prints where there is no terminal


class RunProgress:
    """Shows a run of ``steps`` steps on ``console``. A context manager."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console = console
        self.steps = steps
        self._every = max(1, steps // LINES)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=steps, losses="")

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

    def doing(self, text: str) -> None:
        """What goes on while no step counts up."""
        if self.console.is_terminal:
            self._bar.update(self._task, description=text)
        else:
            self.note(text)

    def stepped(self, done: int, losses: dict[str, float]) -> None:
        """``done`` steps are behind us; the last gave ``losses`` by label."""
        text = "  ".join(f"{label} {loss:.4f}" for label, loss in losses.items())
        if self.console.is_terminal:
            self._bar.update(self._task, description="training", completed=done, losses=f"loss: {text}")
        elif done % self._every == 0 or done == self.steps:
            self.note(f"step {done}/{self.steps}  loss: {text}")
