"""`metis::load` and `metis::store_` read and write what lives across steps, by the names of its site and of its part.

`metis::load(state, site, part, shape, device)` reads a tensor, float32, into one of its own, and
`metis::store_(state, value, site, part)` writes one. `state` says whose: an int64 tensor of one element that
`handle_of` made, through which a graph that serves many models reaches what is kept for the one that called it.
`metis::keep_(x)` does nothing; it counts as an effect of forward, so that forward computes x and backward reads that.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Protocol

import torch

from metis_compile.ops.checks import check_dtype

__all__ = ["KEEP", "LOAD", "STORE", "Keeper", "handle_of"]

# The state of a backward graph is saved by forward; a write must not count as a change of what autograd saved, or
# several forwards before their backwards would be refused.
_library = torch.library.Library("metis", "FRAGMENT")
_library.define("load(Tensor state, str site, str part, int[] shape, Device device) -> Tensor")
_library.define("store_(Tensor(a!) state, Tensor value, str site, str part) -> ()")
_library.define("keep_(Tensor(a!) x) -> ()")


class Keeper(Protocol):
    """What holds tensors across steps."""

    def load(self, site: str, part: str, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """The tensor itself, on `device`."""

    def store(self, site: str, part: str, value: torch.Tensor) -> None:
        """Copies `value` into the tensor of its shape."""


_KEEPERS: dict[int, Keeper] = {}  # by what their handles hold, as long as these live
_numbers = itertools.count()


def handle_of(keeper: Keeper) -> torch.Tensor:
    """int64 [1], on the CPU: what a graph is given to reach `keeper`, which lives as long as the handle does."""
    with torch.inference_mode(False), torch.no_grad():
        number = next(_numbers)
        handle = torch.full([1], number, dtype=torch.int64, device="cpu")
    _KEEPERS[number] = keeper
    weakref.finalize(handle, _KEEPERS.pop, number, None).atexit = False
    return handle


def _keeper(op: str, state: torch.Tensor) -> Keeper:
    _check_handle(op, state)
    found = _KEEPERS.get(int(state))
    if found is None:
        raise RuntimeError(f"{op}: state {int(state)} stands for nothing that is kept: its handle was freed")
    return found


@torch.library.impl(_library, "load", "CompositeExplicitAutograd")
def _load(state: torch.Tensor, site: str, part: str, shape: list[int], device: torch.device) -> torch.Tensor:
    return _keeper("metis::load", state).load(site, part, shape, device).clone()


@torch.library.impl(_library, "store_", "CompositeExplicitAutograd")
def _store(state: torch.Tensor, value: torch.Tensor, site: str, part: str) -> None:
    check_dtype("metis::store_", "value", value, torch.float32)
    _keeper("metis::store_", state).store(site, part, value)


def _check_handle(op: str, state: torch.Tensor) -> None:
    check_dtype(op, "state", state, torch.int64)
    if state.shape != (1,):
        raise ValueError(f"{op}: state must have the shape [1], got {list(state.shape)}")


@torch.library.impl(_library, "keep_", "CompositeExplicitAutograd")
def _keep(x: torch.Tensor) -> None:
    return None


@torch.library.register_fake("metis::load", lib=_library)
def _(state: torch.Tensor, site: str, part: str, shape: list[int], device: torch.device) -> torch.Tensor:
    _check_handle("metis::load", state)
    return state.new_empty(shape, dtype=torch.float32, device=device)


@torch.library.register_fake("metis::store_", lib=_library)
def _(state: torch.Tensor, value: torch.Tensor, site: str, part: str) -> None:
    _check_handle("metis::store_", state)
    check_dtype("metis::store_", "value", value, torch.float32)


@torch.library.register_fake("metis::keep_", lib=_library)
def _(x: torch.Tensor) -> None:
    return None


KEEP = torch.ops.metis.keep_.default
LOAD = torch.ops.metis.load.default
STORE = torch.ops.metis.store_.default
