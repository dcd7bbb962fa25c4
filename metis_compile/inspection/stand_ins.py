"""Stand-ins for a model on the meta device: fake tensors that say they are on the CPU.

What is compiled depends on the device: which attention runs, what is constant, how many bytes a tensor takes. A meta
tensor has none, and torch's passes make little of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from metis_compile.compat import new_fake_mode, without_default_device
from metis_compile.inspection.undisturbed import modules_of

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


@contextmanager
def stand_ins(model: Any, arguments: Any) -> Iterator[Any]:
    """Within, parameters, buffers and tensor attributes of `model` are fake tensors if one of them, or of the
    `arguments`, is on the meta device. Yields the arguments to call it with.

    The model must be put back afterwards, see `undisturbed`. Shared tensors stay shared. Tensors of other devices
    become fake too, on their own device; tensor subclasses stay what they are.
    """
    modules = modules_of(model)
    named: list[tuple[Any, str, Tensor]] = [
        (holder, name, value)
        for module in modules
        for holder in (module._parameters, module._buffers, vars(module))
        for name, value in list(holder.items())
        if isinstance(value, Tensor)
    ]
    tensors = [value for _, _, value in named] + [v for v in tree_leaves(arguments) if isinstance(v, Tensor)]
    if not any(t.is_meta for t in tensors):
        yield arguments
        return
    faked = _Faked()
    for holder, name, value in named:
        holder[name] = faked(value)
    with without_default_device():
        yield tree_map_only(Tensor, faked, arguments)


class _Faked:
    """tensor -> its stand-in, always the same one."""

    def __init__(self) -> None:
        self.mode = new_fake_mode()
        self.known: dict[int, Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if type(tensor) not in _PLAIN:
            return tensor
        if id(tensor) not in self.known:
            self.known[id(tensor)] = self._make(tensor)
        return self.known[id(tensor)]

    def _make(self, tensor: Tensor) -> Tensor:
        device = "cpu" if tensor.is_meta else tensor.device
        with self.mode, torch.no_grad():
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        result: Any = made
        if isinstance(tensor, nn.Parameter):
            result = nn.Parameter(made, requires_grad=tensor.requires_grad)
        elif isinstance(tensor, nn.Buffer):
            make: Callable[..., Any] = nn.Buffer
            result = make(made)
        elif tensor.requires_grad:
            result = made.requires_grad_()
        vars(result).update({k: v for k, v in vars(tensor).items() if k not in vars(result)})
        return result
