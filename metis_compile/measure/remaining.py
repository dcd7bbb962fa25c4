"""How long some jobs will still take, by what was seen of them."""

from dataclasses import dataclass
from statistics import mean

__all__ = ["Remaining", "duration"]


@dataclass(kw_only=True)
class _Running:
    began: float
    steps: int
    done: int = 0
    first: float | None = None  # when its first step was over, before which it starts and compiles
    last: float | None = None  # its last

    def round(self) -> float | None:
        """Seconds of a step; None before the second."""
        if self.first is None or self.last is None or self.done < 2:
            return None
        return (self.last - self.first) / (self.done - 1)

    def whole(self) -> float | None:
        """Seconds from its start to its end."""
        step = self.round()
        return None if step is None or self.first is None else self.first - self.began + (self.steps - 1) * step


class Remaining:
    """Of ``count`` jobs, ``at_once`` of them at any time. Times are seconds of any clock."""

    def __init__(self, count: int, at_once: int = 1) -> None:
        self.waiting, self.at_once = count, at_once
        self._running: dict[str, _Running] = {}
        self._ended: list[float] = []

    def began(self, label: str, steps: int, now: float) -> None:
        """A job has started, of so many steps."""
        self.waiting -= 1
        self._running[label] = _Running(began=now, steps=steps)

    def stepped(self, label: str, done: int, now: float) -> None:
        """``done`` of its steps are over."""
        job = self._running[label]
        if job.first is None:
            job.first, job.done = now, 1
        job.last, job.done = now, max(done, job.done)

    def ended(self, label: str, now: float) -> None:
        """A job is over."""
        self._ended.append(now - self._running.pop(label).began)

    def took(self, label: str, now: float) -> float:
        """Seconds since a running job's start."""
        return now - self._running[label].began

    def seconds(self, now: float) -> float | None:
        """Until all are over; None before a job has ended or two steps of one are over.

        A job that has not begun is taken to last as long as those that have ended, or else those that run.
        """
        known = [whole for job in self._running.values() if (whole := job.whole()) is not None]
        if not self._ended and not known:
            return None
        typical = mean(self._ended or known)
        left = [
            max((typical if whole is None else whole) - (now - job.began), 0.0)
            for job in self._running.values()
            for whole in [job.whole()]
        ]
        return max([*left, (sum(left) + self.waiting * typical) / self.at_once])


def duration(seconds: float) -> str:
    """For people: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
