"""Where in its run a model is: the optimizer steps that are done, as the training loop tells them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary


@dataclass
class Position:
    """The step that a model's next forward belongs to, from 0, and how many the run has, if that is known."""

    step: int
    steps: int | None


_OF_PARAMETERS: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameter -> Position
_OF_MODULES: weakref.WeakKeyDictionary[nn.Module, Position] = weakref.WeakKeyDictionary()


def advance(model: nn.Module, step: int, *, steps: int | None = None) -> None:
    """Tells the compiled parts of `model` which optimizer step comes next: graphs run as the stage of that step says.

    model: compiled, with compiled submodules, or the module that was compiled; wrapped or not. step: from 0, before
    the forward of that step; after a resume, the step that it goes on from. steps: how many the run has, which stages
    that end at a share of them need; once is enough. It has no effect on models that are compiled without a schedule.

    Between the forward and the backward of a step it must not be called. Raises TypeError for what is no module, and
    ValueError for steps that are none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"metis: advance takes the model, an nn.Module, got {type(model).__name__}")
    for name, value in (("step", step), ("steps", steps)):
        if value is None and name == "steps":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"metis: {name} must be a whole number of at least 0, got {value!r}")
    position = _OF_MODULES.get(model)
    if position is None:
        position = _OF_MODULES[model] = Position(step, steps)
    position.step, position.steps = step, position.steps if steps is None else steps
    for module in model.modules():
        _OF_MODULES[module] = position
    for parameter in model.parameters():
        _OF_PARAMETERS[parameter] = position


def clear() -> None:
    """Forgets all positions, as torch.compiler.reset() forgets every compiled graph."""
    _OF_PARAMETERS.clear()
    _OF_MODULES.clear()


def position_of(parameter: Tensor | None, modules: Iterable[nn.Module]) -> Position | None:
    """That of the model that has a parameter, else of the first of some modules; None where no one has told it."""
    if parameter is not None and parameter in _OF_PARAMETERS:
        return _OF_PARAMETERS[parameter]  # type: ignore[no-any-return]
    return next((_OF_MODULES[module] for module in modules if module in _OF_MODULES), None)
