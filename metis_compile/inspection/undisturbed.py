"""Leave a model, its arguments and the random generators as they were before it was run."""

from __future__ import annotations

import functools
import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from metis_compile.compat import has_values

_CONTAINERS = (dict, list, set)  # of a module's own: compared and put back one level deep

Keep = Callable[[Tensor], None]


def modules_of(model: Any) -> list[nn.Module]:
    """All modules of a model; of a function, those of the modules and functions that it reads by name."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    stack = [model]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found.update((id(module), module) for module in value.modules())
        elif isinstance(value, functools.partial):
            stack += [value.func, *value.args, *value.keywords.values()]
        elif inspect.ismethod(value):
            stack += [value.__self__, value.__func__]
        elif inspect.isfunction(value):
            names = inspect.getclosurevars(value)
            read = (*names.nonlocals.values(), *names.globals.values())
            stack += [v for v in read if isinstance(v, nn.Module) or inspect.isroutine(v)]
    return list(found.values())


@contextmanager
def undisturbed(model: Any, arguments: Any) -> Iterator[Keep]:
    """Within, `model` may run and change itself; afterwards it is what it was.

    Put back: every attribute of every module (buffers and parameters that were registered, replaced or removed, plain
    tensors, counters, training flags, hooks, lists and dicts of a module's own), `requires_grad` and `grad` of
    parameters, the values of buffers, of tensors that are plain attributes and of tensors among `arguments`, and the
    states of torch's, Python's and NumPy's generators. Parameters have no gradients within, so that a backward in
    there can't add to them.

    Yields a function that keeps the value of one more tensor, such as a parameter that is about to be written to. A
    tensor whose value is the same is not written to, since a backward may wait for it.
    """
    modules = modules_of(model)
    attributes = [_attributes(module) for module in modules]
    leaves = [p for module in modules for p in module.parameters(recurse=False) if p.is_leaf]
    parameters = [(p, p.grad, p.requires_grad) for p in leaves]
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(tensor: Tensor) -> None:
        for plain in _plain_tensors(tensor):
            if id(plain) not in kept and has_values(plain):
                kept[id(plain)] = (plain, plain.detach().clone())

    for module in modules:
        plain = (v for v in vars(module).values() if isinstance(v, Tensor))
        for tensor in (*module.buffers(recurse=False), *plain):
            keep(tensor)
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, Tensor):
            keep(leaf)
    with _generators():
        try:
            for parameter, _, _ in parameters:
                parameter.grad = None
            yield keep
        finally:
            for module, before in zip(modules, attributes, strict=True):
                _put_back(module, before)
            for parameter, grad, requires_grad in parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
            for tensor, value in kept.values():
                if not torch.equal(tensor, value):
                    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                        tensor.copy_(value)


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """What a tensor subclass is made of: a nested tensor can't be compared with another, nor a DTensor by one rank."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
        yield from _plain_tensors(getattr(tensor, name))


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """name -> (value, what a container holds)."""
    return {
        name: (value, value.copy() if isinstance(value, _CONTAINERS) else None) for name, value in vars(module).items()
    }


def _put_back(module: nn.Module, before: Mapping[str, tuple[Any, Any]]) -> None:
    own = vars(module)
    for name in own.keys() - before.keys():
        del own[name]
    for name, (value, content) in before.items():
        if content is not None and not _holds_the_same(value, content):
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        if own.get(name, own) is not value:
            own[name] = value


def _holds_the_same(value: Any, content: Any) -> bool:
    if len(value) != len(content):
        return False
    if isinstance(value, dict):
        return all(a is b and value[a] is content[b] for a, b in zip(value, content, strict=True))
    if isinstance(value, set):
        return bool(value == content)
    return all(a is b for a, b in zip(value, content, strict=True))


@contextmanager
def _generators() -> Iterator[None]:
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
