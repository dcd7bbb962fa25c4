"""What calls return for fake tensors, evaluated once for inputs of one kind: layers are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metis_compile.compat import FakeTensor, OpOverload, fake_tensor


class _Kind(NamedTuple):
    """All that a result of known sizes depends on, of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class FakeValues:
    """Evaluates calls under `mode`, a fake tensor mode.

    An operator that has made new tensors from inputs of the same kind before is not run again: its results are fake
    tensors of the same kind. What returns a view of its input, or has sizes that are symbols, is run each time.
    """

    def __init__(self, mode: Any) -> None:
        self.mode = mode
        self._known: dict[Any, tuple[type | None, list[_Kind]]] = {}

    def __call__(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None
        if _makes_new(target):
            key = _key((args, kwargs))
        if key is None:
            with self.mode:
                return target(*args, **kwargs)
        key = target, key
        if key not in self._known:
            with self.mode:
                value = target(*args, **kwargs)
            kinds = _kinds_of(value, self.mode)
            if kinds is not None:
                self._known[key] = type(value) if isinstance(value, (list, tuple)) else None, kinds
            return value
        several, kinds = self._known[key]
        made = [fake_tensor(self.mode, *kind) for kind in kinds]
        return made[0] if several is None else several(made)


def _makes_new(target: Any) -> bool:
    """Whether an operator returns tensors of its own and writes to none."""
    if not isinstance(target, OpOverload):
        return False
    schema = target._schema
    return bool(schema.returns) and all(each.alias_info is None for each in (*schema.arguments, *schema.returns))


def _key(value: Any) -> Any:
    """Equal for arguments that lead to results of one kind; None where that can't be said."""
    if isinstance(value, Tensor):
        return None if value.requires_grad else _kind(value)
    if isinstance(value, (list, tuple)):
        keys = [_key(each) for each in value]
        return None if any(key is None for key in keys) else (type(value), *keys)
    if isinstance(value, dict):
        return _key([item for pair in sorted(value.items()) for item in pair])
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, torch.layout)):
        return type(value), value
    return None  # a symbol, a generator


def _kind(value: Tensor) -> _Kind | None:
    if not isinstance(value, FakeTensor) or value.layout != torch.strided:
        return None
    shape, strides = tuple(value.shape), value.stride()
    known = all(isinstance(size, int) for size in (*shape, *strides, value.storage_offset()))
    return _Kind(shape, strides, value.dtype, value.device) if known else None


def _kinds_of(value: Any, mode: Any) -> list[_Kind] | None:
    """Of the results, each the only one in its memory; None where they are anything else."""
    results: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    found = []
    for each in results:
        kind = _kind(each) if isinstance(each, Tensor) and not each.requires_grad else None
        if kind is None or each.fake_mode is not mode or each.storage_offset() != 0:
            return None
        found.append(kind)
    return found
