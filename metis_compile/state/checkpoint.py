"""Save and restore what compiled models keep from step to step, beside their own checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from metis_compile.state.flat import NAMES, State

# parameter -> the states of the graphs that have it as their first, in the order of their first calls
_STATES: WeakIdKeyDictionary = WeakIdKeyDictionary()
# parameter -> states to be taken by graphs that have not been called yet, by their place in that order
_WAITING: WeakIdKeyDictionary = WeakIdKeyDictionary()


def clear() -> None:
    """Forgets every state, as torch.compiler.reset() forgets every compiled graph."""
    _STATES.clear()
    _WAITING.clear()


def state_dict(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Copies of what the compiled parts of `model` keep across steps: for a checkpoint beside the model's own.

    model: compiled, with compiled submodules, or the module that was compiled. Empty where the policy keeps nothing,
    and before the first step. Raises TypeError for a compiled function: give the module whose parameters it uses.
    """
    found = {}
    for name, parameter in _parameters(model):
        for number, state in enumerate(_STATES.get(parameter, ())):
            found[f"{name}#{number}"] = {part: t.clone() for part, t in zip(NAMES, state, strict=True)}
        for key, given in _WAITING.get(parameter, {}).values():
            found[key] = {part: t.clone() for part, t in given.items()}
    return found


def tensors(model: nn.Module) -> list[Tensor]:
    """The tensors themselves that `state_dict` gives copies of."""
    return [t for _, parameter in _parameters(model) for state in _STATES.get(parameter, ()) for t in state]


def load_state_dict(model: nn.Module, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Puts back what `state_dict` gave, before the first step or after: steps go on as they would have, bit for bit.

    Raises TypeError for what is no mapping; ValueError for the state of another model, and, from here or from the first
    step, for one whose number of values is another. What the values are is not compared: bases of another policy that
    take up the same room are taken, and find their way within a few steps.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"metis: a state is what metis_compile.state_dict gives, got {type(state).__name__}")
    parameters = dict(_parameters(model))
    for key, given in state.items():
        name, _, number = key.rpartition("#")
        if name not in parameters or not number.isdigit():
            raise ValueError(
                f"metis: the state holds {key!r}, which is of another model: there is no parameter {name!r}"
            )
        if set(given) != set(NAMES):
            raise ValueError(f"metis: the state of {key!r} must hold {' and '.join(NAMES)}, got {sorted(given)}")
    for parameter in parameters.values():
        _WAITING.pop(parameter, None)
    for key, given in state.items():
        name, _, number = key.rpartition("#")
        parameter, place = parameters[name], int(number)
        there = _STATES.get(parameter, [])
        if place < len(there):
            fill(there[place], given, key)
        else:
            _WAITING.setdefault(parameter, {})[place] = (key, {part: t.clone() for part, t in given.items()})


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"metis: a state is that of an nn.Module, got {type(model).__name__}: give the compiled module")
    for name, parameter in getattr(model, "_orig_mod", model).named_parameters():
        yield name.replace("_orig_mod.", ""), parameter


def fill(state: State, given: Mapping[str, Tensor], key: str) -> None:
    for part, tensor in zip(NAMES, state, strict=True):
        if given[part].shape != tensor.shape:
            raise ValueError(
                f"metis: the state of {key!r} holds {given[part].numel()} values for its {part}, and this model and "
                f"policy need {tensor.numel()}"
            )
    for part, tensor in zip(NAMES, state, strict=True):
        tensor.copy_(given[part])


def enlist(owner: Any, state: State) -> None:
    """Takes up the state of another graph that has `owner` as its first parameter, and fills it if it was loaded."""
    states = _STATES.setdefault(owner, [])
    waiting = _WAITING.get(owner, {}).pop(len(states), None)
    states.append(state)
    if waiting is not None:
        fill(state, waiting[1], waiting[0])
