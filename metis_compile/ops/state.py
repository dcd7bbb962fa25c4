"""`metis::load` and `metis::store_` read and write slices of the flat tensors that hold what lives across steps.

`metis::load(state, offset, shape)` reads a slice into a tensor of its own, `metis::store_(state, value, offset)` writes
one. `metis::keep_(x)` does nothing; it counts as an effect of forward, so that forward computes x and backward reads
that.
"""

from __future__ import annotations

import math

import torch

from metis_compile.ops.checks import check_device, check_dtype

__all__ = ["KEEP", "LOAD", "STORE"]

# The state of a backward graph is saved by forward; a write must not count as a change of what autograd saved, or
# several forwards before their backwards would be refused.
_library = torch.library.Library("metis", "FRAGMENT")
_library.define("load(Tensor state, int offset, int[] shape) -> Tensor")
_library.define("store_(Tensor(a!) state, Tensor value, int offset) -> ()")
_library.define("keep_(Tensor(a!) x) -> ()")


@torch.library.impl(_library, "load", "CompositeExplicitAutograd")
def _load(state: torch.Tensor, offset: int, shape: list[int]) -> torch.Tensor:
    _check_slice("metis::load", state, offset, math.prod(shape))
    return state[offset : offset + math.prod(shape)].view(shape).clone()


@torch.library.impl(_library, "store_", "CompositeExplicitAutograd")
def _store(state: torch.Tensor, value: torch.Tensor, offset: int) -> None:
    _check_store(state, value, offset)
    state.data[offset : offset + value.numel()].copy_(value.reshape(-1))


def _check_slice(op: str, state: torch.Tensor, offset: int, count: int) -> None:
    if state.dim() != 1:
        raise ValueError(f"{op}: state must have one dimension, got shape {list(state.shape)}")
    if not 0 <= offset <= state.numel() - count:
        raise ValueError(f"{op}: offset must leave room for {count} of {state.numel()} elements, got {offset}")


def _check_store(state: torch.Tensor, value: torch.Tensor, offset: int) -> None:
    _check_slice("metis::store_", state, offset, value.numel())
    check_dtype("metis::store_", "value", value, state.dtype)
    check_device("metis::store_", "value", value, state, "state")


@torch.library.impl(_library, "keep_", "CompositeExplicitAutograd")
def _keep(x: torch.Tensor) -> None:
    return None


@torch.library.register_fake("metis::load", lib=_library)
def _(state: torch.Tensor, offset: int, shape: list[int]) -> torch.Tensor:
    _check_slice("metis::load", state, offset, math.prod(shape))
    return state.new_empty(shape)


@torch.library.register_fake("metis::store_", lib=_library)
def _(state: torch.Tensor, value: torch.Tensor, offset: int) -> None:
    _check_store(state, value, offset)


@torch.library.register_fake("metis::keep_", lib=_library)
def _(x: torch.Tensor) -> None:
    return None


KEEP = torch.ops.metis.keep_.default
LOAD = torch.ops.metis.load.default
STORE = torch.ops.metis.store_.default
