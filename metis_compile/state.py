"""What compiled models keep from step to step: the bases of spectral splits, and how they are saved and restored.

A graph whose policy keeps bases has two inputs more than Dynamo gave it: flat float32 tensors, one that its forward
reads and writes and one that its backward does. `Stateful` appends them to each call. One compiled graph may serve
several instances of a model, or several blocks of one: each has tensors of its own, told apart by the first parameter
that is passed in.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils.weak import WeakIdKeyDictionary

from metis_compile.compat import (
    copy_dynamo_graph,
    detect_fake_mode,
    fake_mode_of,
    in_backward,
    saves_through_hooks,
    synthetic_source,
)
from metis_compile.conditioning import kept_step, largest_rank
from metis_compile.passes.graph.sites import GraphInputs
from metis_compile.policy import OPERANDS, OPS, Policy

_SEED = 2025  # of the rows that bases start from
NAMES = ("forward", "backward")
State = tuple[Tensor, Tensor]  # of the forward part of a graph, and of its backward part

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
            _fill(there[place], given, key)
        else:
            _WAITING.setdefault(parameter, {})[place] = (key, {part: t.clone() for part, t in given.items()})


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"metis: a state is that of an nn.Module, got {type(model).__name__}: give the compiled module")
    for name, parameter in getattr(model, "_orig_mod", model).named_parameters():
        yield name.replace("_orig_mod.", ""), parameter


def _fill(state: State, given: Mapping[str, Tensor], key: str) -> None:
    for part, tensor in zip(NAMES, state, strict=True):
        if given[part].shape != tensor.shape:
            raise ValueError(
                f"metis: the state of {key!r} holds {given[part].numel()} values for its {part}, and this model and "
                f"policy need {tensor.numel()}"
            )
    for part, tensor in zip(NAMES, state, strict=True):
        tensor.copy_(given[part])


class Stateful:
    """A compiled graph that is called with its state behind the inputs that Dynamo gives it."""

    def __init__(self, compiled: Callable[..., Any], first: State, parameter: int | None, listed: bool) -> None:
        self.compiled, self.parameter, self.listed = compiled, parameter, listed
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
        if owner not in self._states:
            state = self._states[owner] = self._new()
            if self.listed:
                states = _STATES.setdefault(owner, [])
                waiting = _WAITING.get(owner, {}).pop(len(states), None)
                states.append(state)
                if waiting is not None:
                    _fill(state, waiting[1], waiting[0])
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


def new_state(sizes: tuple[int, ...], device: torch.device) -> State:
    """Values between -1 and 1, always the same: rows of full rank, for power steps to start from."""
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator("cpu").manual_seed(_SEED)
        forward, backward = (torch.rand(n, generator=generator).mul_(2).sub_(1).to(device) for n in sizes)
    return forward, backward


def room(gm: fx.GraphModule, policy: Policy) -> tuple[int, int] | None:
    """How many values the forward and the backward part of a Dynamo graph may keep at most, from what it calls.

    For each product, a basis of every matrix in it: of the features of `linear` and of experts; of either side, for the
    others. None where the policy keeps nothing.
    """
    kept = {role: _kept_splits(policy, role) for role in OPERANDS}
    if not any(kept.values()):
        return None
    forward = backward = 0
    for module in gm.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                read, given = _features(node)
                forward += sum(_basis_room([*kept["weight"], *kept["activation"]], sizes) for sizes in read)
                backward += sum(_basis_room(kept["weight"], sizes) for sizes in read)  # of weights split there alone
                backward += sum(_basis_room(kept["gradient"], sizes) for sizes in given)
    return max(forward, 1), max(backward, 1)


def _kept_splits(policy: Policy, role: str) -> list[Any]:
    splits = [recipe.treatment(role).split for recipe in policy.recipes]
    return [split for split in splits if split is not None and kept_step(split) is not None]


def _basis_room(splits: Sequence[Any], sizes: Sequence[int]) -> int:
    """sizes: how many columns the matrix may have; of two, the one that it has not is how many rows it has."""
    if not sizes:
        return 0
    columns = max(sizes)
    return max((largest_rank(split, columns, min(sizes)) * columns + 1 for split in splits), default=0)


def _features(node: fx.Node) -> tuple[list[list[int]], list[list[int]]]:
    """How many features each matrix that a call reads has at most, and each that it gives; both sides where known."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    name = name.split(".")[0].strip("_").removesuffix("_fallback")  # transformers has a grouped_mm of its own
    if node.op not in ("call_function", "call_method") or name not in OPS:
        return [], []
    if name == "tensordot":
        left, right, given = _tensordot_sides(*node.args, **node.kwargs)
        return [left, right], [left, right, given]
    read = [_sizes(n) for n in node.all_input_nodes]
    given = _sizes(node)
    if name == "linear" and len(read) > 1 and len(read[1]) == 2:
        return [read[0][-1:], [max(read[1])]], [read[1][:1]]
    if name == "grouped_mm" and len(read) > 1 and len(read[1]) == 2:  # tokens are no features
        return [read[0][-1:], [max(read[1])]], [given[-1:]]
    inputs = [[max(sizes)] for sizes in read if sizes]
    return inputs, [*inputs, *([[max(given)]] if given else [])]


def _tensordot_sides(a: Any, b: Any, dims: Any = 2, out: Any = None) -> tuple[list[int], list[int], list[int]]:
    """The known sides of the matrices that `tensordot` multiplies, and of their product: each of several dimensions."""
    first, second = _shape(a), _shape(b)
    # numbers of the caller's own are inputs of a graph whose every size is dynamic; a product's dimensions settle them
    dims = fx.map_arg(dims, lambda node: node.meta["example_value"])
    if not isinstance(dims, Sequence):
        dims = (range(len(first) - int(dims), len(first)), range(int(dims)))
    over_a, over_b = ([int(d) % len(shape) for d in over] for over, shape in zip(dims, (first, second), strict=True))
    contracted = [first[d] for d in over_a]
    rows = [size for d, size in enumerate(first) if d not in over_a]
    columns = [size for d, size in enumerate(second) if d not in over_b]
    m, k, n = ([math.prod(map(int, side))] if all(map(_known, side)) else [] for side in (rows, contracted, columns))
    return m + k, k + n, m + n


def _sizes(node: fx.Node) -> list[int]:
    """The known sizes of a tensor's last two dimensions."""
    return [int(size) for size in _shape(node)[-2:] if _known(size)]


def _shape(node: fx.Node) -> Sequence[Any]:
    value = node.meta.get("example_value")
    return value.shape if isinstance(value, Tensor) else ()


def _known(size: Any) -> bool:
    """Of an input that was marked dynamic, sizes stay symbols that stand for numbers where a weight has told them."""
    return not isinstance(size, torch.SymInt) or (not size.node.is_nested_int() and is_concrete_int(size))


def with_state_inputs(
    gm: fx.GraphModule, inputs: GraphInputs, example_inputs: Sequence[Any], sizes: tuple[int, int]
) -> tuple[fx.GraphModule, GraphInputs, State, int | None]:
    """A copy of a Dynamo graph with two inputs more, for its state; `gm` itself stays as it is.

    Returns the copy, its inputs, the first state, and which input tells whose state it is.
    """
    mode = fake_mode_of(example_inputs)
    with mode or nullcontext():  # the state of a model that is fake is fake
        state = new_state(sizes, _device(example_inputs))
    fake_mode = detect_fake_mode([n.meta.get("example_value") for n in gm.graph.nodes])
    assert fake_mode is not None
    copied, placeholders = copy_dynamo_graph(gm)
    count = len(placeholders)
    with copied.graph.inserting_after(placeholders[-1]) if placeholders else copied.graph.inserting_before(None):
        for name, tensor in reversed(list(zip(NAMES, state, strict=True))):
            node = copied.graph.placeholder(f"metis_{name}_state")
            source = synthetic_source(f"metis_{name}_state")
            node._dynamo_source = source
            node.meta["example_value"] = fake_mode.from_tensor(tensor, static_shapes=True, source=source)
    copied.recompile()
    owner = min(inputs.parameters, default=None)
    new_inputs = GraphInputs(parameters=inputs.parameters, buffers=inputs.buffers, state=(count, count + 1))
    return copied, new_inputs, state, owner


def _device(example_inputs: Sequence[Any]) -> torch.device:
    """Where most of the inputs lie."""
    devices = [t.device for t in example_inputs if isinstance(t, Tensor)]
    return max(devices, key=devices.count) if devices else torch.device("cpu")
