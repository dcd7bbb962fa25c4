"""What a run shows while it goes: a bar with both losses, or lines where there is no terminal."""

from rich.console import Console

from metis_compile.measure.progress import Bars

__all__ = ["RunProgress"]

LINES = 20  # about how many lines a run prints where there is no terminal


class RunProgress(Bars):
    """Shows a run of ``steps`` steps on ``console``. A context manager."""

    def __init__(self, console: Console, steps: int) -> None:
        super().__init__(console)
        self.steps = steps
        self._every = max(1, steps // LINES)
        self._task = self._bar.add_task("starting", total=steps, note="")

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
            self._bar.update(self._task, description="training", completed=done, note=f"loss: {text}")
        elif done % self._every == 0 or done == self.steps:
            self.note(f"step {done}/{self.steps}  loss: {text}")
