"""Which model a compiled module is a part of: the one that the user named, or the outermost one being called."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from types import FrameType

from torch import fx, nn

from metis_compile.naming.tree import is_only_wrapped

_NAMED: list[weakref.ref[nn.Module]] = []  # by name_modules, the last first
_SEEN: list[weakref.ref[nn.Module]] = []  # outermost models of earlier compiles, the last first
_MOST_SEEN = 16


def name_modules(model: nn.Module) -> None:
    """Has rules of policies know every part of `model` by its name in `model`, wherever it is compiled.

    That is what happens without this call too where a module of `model` is called by `model`, through whatever wraps
    it: it is for blocks that are compiled one by one and called one by one, by a function that is no module, and for
    names that should not begin with those of a module around `model`. The model is not kept alive by it.

    Raises TypeError for what is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"metis: name_modules takes the model whose parts are compiled, got {type(model).__name__}")
    _remember(_NAMED, model)


def clear() -> None:
    """Forgets the models of earlier compiles, not those that the user named."""
    _SEEN.clear()


def outermost(module: nn.Module) -> nn.Module:
    """The model that `module` is a part of, as far as can be told; `module` itself where nothing tells.

    A model that `name_modules` was given comes first, then the outermost module whose call is running, then the model
    of an earlier compile: a backward runs checkpointed modules again with no such call around them.
    """
    called = [model for model in _being_called() if _holds(model, module)]
    around = [model for model in called if not is_only_wrapped(module, model)]
    seen = [model for model in _alive(_SEEN) if _holds(model, module)]
    named = [model for model in _alive(_NAMED) if _holds(model, module)]
    for model in [*named, *around, *seen]:
        if all(model is not known for known in seen):
            _remember(_SEEN, model)
            del _SEEN[_MOST_SEEN:]
        return model
    _remember(_SEEN, module)
    del _SEEN[_MOST_SEEN:]
    return module


def _holds(model: nn.Module, module: nn.Module) -> bool:
    return any(part is module for part in model.modules())


def caller(kind: type[nn.Module]) -> nn.Module | None:
    """The innermost module of class `kind` whose call is running."""
    found = None
    for module in _being_called():
        if type(module) is kind:
            found = module
    return found


def holder(parameter: nn.Parameter, kind: type[nn.Module]) -> nn.Module | None:
    """The module of class `kind` that has `parameter`: the innermost in a running function, or one of a known model."""
    found = [value for frame in _frames() for value in frame.f_locals.values() if type(value) is kind]
    known = [*_alive(_NAMED), *_alive(_SEEN)]
    found += [part for model in known for part in model.modules() if type(part) is kind]
    return next((module for module in found if has_parameter(module, parameter)), None)


def has_parameter(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether `parameter` itself is one of the module's."""
    return any(own is parameter for own in module.parameters())


def _being_called() -> list[nn.Module]:
    """Modules whose methods are running in this thread, outermost first."""
    found = []
    for frame in _frames():
        names = frame.f_code.co_varnames
        if "self" in names[: frame.f_code.co_argcount]:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and not isinstance(module, fx.GraphModule):
                found.append(module)
    return found[::-1]


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _alive(models: list[weakref.ref[nn.Module]]) -> list[nn.Module]:
    return [model for ref in models if (model := ref()) is not None]


def _remember(models: list[weakref.ref[nn.Module]], model: nn.Module) -> None:
    models[:] = [weakref.ref(model), *(ref for ref in models if ref() is not None and ref() is not model)]
