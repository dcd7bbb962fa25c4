"""Call a compiled graph with its state.

One compiled graph may serve several instances of a model, or several blocks of one: each has tensors of its own, told
apart by the first parameter that is passed in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from metis_compile.compat import in_backward, saves_through_hooks
from metis_compile.naming.outermost import caller
from metis_compile.state.checkpoint import enlist
from metis_compile.state.flat import State, new_state


class Stateful:
    """A compiled graph that is called with its state behind the inputs that Dynamo gives it."""

    def __init__(
        self,
        compiled: Callable[..., Any],
        first: State,
        parameter: int | None,
        listed: bool,
        kind: type[nn.Module] | None = None,
    ) -> None:
        """kind: the class of the compiled module, to tell instances apart whose parameters are plain tensors."""
        self.compiled, self.parameter, self.listed, self.kind = compiled, parameter, listed, kind
        self._first: State | None = first
        self._sizes, self._device = tuple(t.numel() for t in first), first[0].device
        self._states: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._alone: State | None = None  # of a graph without parameters
        self._calls: WeakIdKeyDictionary = WeakIdKeyDictionary()  # forward -> its calls that may be run again

    def __call__(self, *args: Any) -> Any:
        forward, backward = self._state(args)
        calls: list[weakref.ref[_Call]] = self._calls.setdefault(forward, [])
        if in_backward():
            # a checkpointed region is run again: from the bases that it had, without moving them on once more. With
            # none to be found this is the first time that it runs with gradients: checkpointing was reentrant
            call = _run_again(calls, args)
            return self.compiled(*args, forward if call is None else call.forward.clone(), backward)
        call = _Call(args, forward.clone()) if saves_through_hooks() else None
        results = self.compiled(*args, forward, backward)
        nodes: list[Any] = [r.grad_fn for r in results if isinstance(r, Tensor) and r.grad_fn is not None]
        if call is not None and nodes:
            nodes[0].metadata[self] = call  # as long as a backward may come
            calls[:] = [*(ref for ref in calls if ref() is not None), weakref.ref(call)]
        return results

    def _state(self, args: Sequence[Any]) -> State:
        if self.parameter is None:
            self._alone = self._alone or self._new()
            return self._alone
        owner = args[self.parameter]
        if not isinstance(owner, nn.Parameter) and self.kind is not None:
            owner = caller(self.kind) or owner  # FSDP1 makes new tensors for each call
        if owner not in self._states:
            state = self._states[owner] = self._new()
            if self.listed:
                enlist(owner, state)
        return self._states[owner]

    def _new(self) -> State:
        state, self._first = self._first or new_state(self._sizes, self._device), None
        return state


class _Call:
    """A forward that a checkpoint may run again: what it was given, and the bases before it moved them on."""

    def __init__(self, args: Sequence[Any], forward: Tensor) -> None:
        self.given = [weakref.ref(a) for a in args if isinstance(a, Tensor)]
        self.forward, self.ran_again = forward, False

    def is_of(self, args: Sequence[Any]) -> bool:
        tensors = [a for a in args if isinstance(a, Tensor)]
        return len(tensors) == len(self.given) and all(ref() is a for ref, a in zip(self.given, tensors, strict=True))


def _run_again(calls: Sequence[weakref.ref[_Call]], args: Sequence[Any]) -> _Call | None:
    """The call with the same inputs; where they were computed anew too, the last that has not been run again."""
    live = [call for ref in calls if (call := ref()) is not None]
    live = [call for call in live if call.is_of(args)] or live
    live = [call for call in live if not call.ran_again] or live
    if not live:
        return None
    live[-1].ran_again = True
    return live[-1]
