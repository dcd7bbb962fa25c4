"""Call a compiled graph with handles of what is kept for the module that it runs for.

One compiled graph may serve several instances of a model, or several blocks of one: which of them runs is told by the
first parameter that is passed in, or, where parameters are plain tensors (FSDP1), by who calls.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from metis_compile.compat import in_backward, saves_through_hooks
from metis_compile.naming.outermost import caller, has_parameter, holder
from metis_compile.ops.state import handle_of
from metis_compile.state.keeper import Keeper, Noted, Repeated, Sites


class Stateful:
    """A compiled graph that is called with handles of what it keeps, behind the inputs that Dynamo gives it."""

    def __init__(
        self,
        compiled: Callable[..., Any],
        *,
        parameter: int | None,
        listed: bool,
        module: nn.Module | None,
        name: str,
        roots: Sequence[nn.Module],
    ) -> None:
        """parameter: the position of the first one. module: the one that was compiled, by this name in the model.

        listed: whether what is kept lies beside the modules, where `metis_compile.state_dict` finds it. roots: the
        outermost models that the graph was compiled in.
        """
        self.compiled, self.parameter, self.listed, self.name = compiled, parameter, listed, name
        self.module = None if module is None else weakref.ref(module)
        self.kind = None if module is None else type(module)
        self.roots = [weakref.ref(root) for root in roots]
        self._served: WeakIdKeyDictionary = WeakIdKeyDictionary()  # module, or parameter of one -> what it keeps
        self._alone: _Served | None = None  # of no module

    def __call__(self, *args: Any) -> Any:
        served = self._serve(args)
        if in_backward():
            # a checkpointed region is run again: from the bases that it had, without moving them on once more. With
            # none to be found this is the first time that it runs with gradients: checkpointing was reentrant
            call = _run_again(served.calls, args)
            forward = served.forward if call is None else handle_of(Repeated(call.noted))
            return self.compiled(*args, forward, served.backward)
        if not saves_through_hooks():
            return self.compiled(*args, served.forward, served.backward)
        call = _Call(args, Noted(served.keeper))
        results = self.compiled(*args, handle_of(call.noted), served.backward)
        nodes: list[Any] = [r.grad_fn for r in results if isinstance(r, Tensor) and r.grad_fn is not None]
        if nodes:
            nodes[0].metadata[self] = call  # as long as a backward may come
            served.calls[:] = [*(ref for ref in served.calls if ref() is not None), weakref.ref(call)]
        return results

    def _serve(self, args: Sequence[Any]) -> _Served:
        owner = args[self.parameter] if self.parameter is not None else None
        if isinstance(owner, nn.Parameter):
            if owner not in self._served:
                self._served[owner] = self._of(self._instance(owner), owner)
            return self._served[owner]  # type: ignore[no-any-return]
        module = caller(self.kind) if self.kind is not None else None  # FSDP1 makes new tensors for each call
        return self._of(module)

    def _instance(self, owner: nn.Parameter) -> nn.Module | None:
        module = None if self.module is None else self.module()
        if module is not None and has_parameter(module, owner):
            return module
        return None if self.kind is None else holder(owner, self.kind)

    def _of(self, module: nn.Module | None, owner: nn.Parameter | None = None) -> _Served:
        """What is kept for a module; where none is known, for what lies in the models that were compiled, or alone."""
        if module is not None:
            if module not in self._served:
                self._served[module] = _Served(Keeper(self._sites(module) if self.listed else None))
            return self._served[module]  # type: ignore[no-any-return]
        roots = [root for ref in self.roots if (root := ref()) is not None]
        if self.listed and owner is not None and any(has_parameter(root, owner) for root in roots):
            return _Served(Keeper(self._sites(None)))
        if owner is not None:
            return _Served(Keeper())
        self._alone = self._alone or _Served(Keeper())
        return self._alone

    def _sites(self, module: nn.Module | None) -> Sites:
        return Sites(module, self.name, [root for ref in self.roots if (root := ref()) is not None])


class _Served:
    """What is kept for one module, the handles of both halves of the graph, and the calls that may be run again."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.forward, self.backward = handle_of(keeper), handle_of(keeper)
        self.calls: list[weakref.ref[_Call]] = []


class _Call:
    """A forward that a checkpoint may run again: what it was given, and the bases before it moved them on."""

    def __init__(self, args: Sequence[Any], noted: Noted) -> None:
        self.given = [weakref.ref(a) for a in args if isinstance(a, Tensor)]
        self.noted, self.ran_again = noted, False

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
