"""A graph compiled for every stage of a schedule that is still to come, and run as the stage says that it is in.

All are compiled when Dynamo hands the graph over, so that a mistake in the last stage is said in the first step and
not after days, and so that guards on sizes hold for all of them. What policies keep across steps lies beside the
model's modules and goes on from stage to stage where its shape is the same.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from metis_compile.naming import PolicyWarning
from metis_compile.policy import Schedule
from metis_compile.schedule.position import Position, position_of

log = logging.getLogger("metis_compile")


class Staged:
    """One callable for each stage from `first` on; calling it calls that of the stage that the model is in."""

    def __init__(
        self,
        schedule: Schedule,
        first: int,
        compiled: Sequence[Callable[..., Any]],
        *,
        parameter: int | None,
        modules: Sequence[nn.Module],
        entered: Callable[[int], None] | None = None,
    ) -> None:
        """parameter: the position of the graph's first one. modules: those that were compiled, the innermost first.

        entered: called with the index of a stage when a call runs another than the call before it.
        """
        self.schedule, self.first, self.compiled, self.parameter = schedule, first, compiled, parameter
        self._modules = [weakref.ref(module) for module in modules]
        self._entered = entered
        self._stage: int | None = None
        self._calls = 0

    def __call__(self, *args: Any) -> Any:
        parameter = None if self.parameter is None else args[self.parameter]
        modules = [module for ref in self._modules if (module := ref()) is not None]
        index = stage_of(self.schedule, position := position_of(parameter, modules))
        if position is None:
            self._calls += 1
            if self._calls == 2:  # the first may be a trial
                warnings.warn(
                    PolicyWarning(
                        f"metis: schedule {self.schedule.name} stays in its first stage: call "
                        "metis_compile.advance(model, step) before each step, or use metis's callback"
                    ),
                    stacklevel=2,
                )
        if self._stage not in (None, index):
            log.info("metis: %s", described(self.schedule, index, position))
        if index < self.first:
            raise RuntimeError(
                f"metis: the model went back to stage {index + 1} of {self.schedule.name}, and was compiled for stage "
                f"{self.first + 1} on: call torch.compiler.reset(), and it is compiled again"
            )
        if index != self._stage and self._entered is not None:
            self._entered(index)
        self._stage = index
        return self.compiled[index - self.first](*args)


def stage_of(schedule: Schedule, position: Position | None) -> int:
    """The index of the stage that a model is in: the first where no one has told its step."""
    return 0 if position is None else schedule.stage_at(position.step, position.steps)


def described(schedule: Schedule, index: int, position: Position | None) -> str:
    """`step 900: schedule run.toml, stage 2 of 2, policy bf16-forward.toml`."""
    step = "" if position is None else f"step {position.step}: "
    stage = schedule.stages[index]
    return f"{step}schedule {schedule.name}, stage {index + 1} of {len(schedule.stages)}, policy {stage.policy.name}"
