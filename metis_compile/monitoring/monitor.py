"""`metis_compile.monitor`: statistics of every quantized operand in one step of many."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from metis_compile.monitoring.destinations import destination
from metis_compile.monitoring.records import as_numbers, in_order
from metis_compile.monitoring.watched import Watched
from metis_compile.naming.tree import tree_of
from metis_compile.passes.graph.sites import GraphInputs
from metis_compile.policy import PolicyError
from metis_compile.policy.globs import Glob, compile_glob
from metis_compile.statistics import VECTORS, format_specs

__all__ = ["Monitor", "clear", "monitor", "watch"]

_OPEN: list[Monitor] = []


def monitor(
    model: nn.Module,
    *,
    every: int = 50,
    to: Any = None,
    what_if: Sequence[str] = (),
    modules: str | None = None,
    vectors: int | None = VECTORS,
    start: int = 0,
) -> Monitor:
    """Records statistics of every quantized operand and product of `model`, in one training step of `every`.

    Call it before the first training step: graphs that were compiled before are not looked at.

    model: compiled by backend="metis", a module with compiled parts, or the module that will be compiled. every: steps
    0, `every`, 2 `every`, ... are sampled. to: where records go, a path (JSON lines), a function of a list of records,
    a TensorBoard SummaryWriter, a list of these, or None: `Monitor.records` has those of the last sampled step.
    what_if: other formats, such as ("mxfp8", "nvfp4"), that each tensor is put into as well. modules: a glob of the
    names of modules to look at, None for all. vectors: about how many of each operand's vectors along the contracted
    axis are looked at, None for all. start: the number of the first step; a file is emptied where it is 0, else added
    to.

    A step ends when an optimizer that has one of the model's parameters has stepped, or, once `Monitor.advance` was
    called, when it is called. In a distributed run every process records its own tensors, under its `rank`.

    Raises TypeError for what is no module or no destination; ValueError for every < 1, start < 0, vectors < 1, an
    unknown format, a bad glob, and a model that is monitored already; OSError for a file that can't be written. At the
    end of the first sampled step RuntimeError where nothing was recorded, and says why.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"metis: what is monitored is an nn.Module, got {type(model).__name__}: give the compiled module"
        )
    for name, value, least in (("every", every, 1), ("start", start, 0), ("vectors", vectors, 1)):
        if value is None and name == "vectors":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"metis: {name} must be a whole number of at least {least}, got {value!r}")
    bare = getattr(model, "_orig_mod", model)
    if any(opened.model() is bare for opened in _OPEN):
        raise ValueError("metis: this model is monitored already: close that monitor first")
    try:
        specs = format_specs(what_if)
        glob = None if modules is None else compile_glob(modules)
    except PolicyError as error:
        raise ValueError(f"metis: modules: {error}") from None
    except ValueError as error:
        raise ValueError(f"metis: {error}") from None
    opened = Monitor(bare, every=every, to=to, what_if=specs, glob=glob, vectors=vectors, start=start)
    _OPEN.append(opened)
    return opened


class Monitor:
    """What `monitor` gives. step: the number of the step that is running. records: those of the last sampled step.

    Until it is closed it lives with the model; it can be used in a `with` statement.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int,
        to: Any,
        what_if: Mapping[str, Any],
        glob: Glob | None,
        vectors: int | None,
        start: int,
    ) -> None:
        self.model: Callable[[], nn.Module | None] = weakref.ref(model)
        self.every, self.what_if, self.vectors, self.step = every, what_if, vectors, start
        self.records: list[dict[str, Any]] = []
        self.watched: list[Watched] = []
        self._glob = glob
        self._send = destination(to, _rank(), start == 0)
        self._waiting: list[dict[str, Any]] = []
        self._has_recorded = False
        self._optimizer: Callable[[], Optimizer | None] | None = None
        self._names: dict[int, set[str]] = {}
        self._hook = register_optimizer_step_post_hook(self._stepped)
        weakref.finalize(model, self.close)
        self.is_sampling = self._is_sampled()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, step: int | None = None) -> None:
        """Ends a step: its records are handed on. step: the number of the one that begins, the next one unless given.

        From the first call on, steps are counted by these calls alone and not by the optimizer's.
        """
        self._hook.remove()
        self._advance(step)

    def close(self) -> None:
        """Hands on what is recorded of the step that is running; nothing more is recorded. May be called again."""
        self._hook.remove()
        self.is_sampling = False
        if self in _OPEN:
            _OPEN.remove(self)
        self._flush()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within: nothing is recorded. For forwards with gradients that are no training, such as a validation's."""
        sampling, self.is_sampling = self.is_sampling, False
        try:
            yield
        finally:
            self.is_sampling = sampling

    def wants(self, module: str) -> bool:
        """Whether a module is to be looked at."""
        return self._glob is None or self._glob.fullmatch(module)

    def add(self, record: dict[str, Any]) -> None:
        """Takes one record, with tensors of no dimensions for numbers; they are read when the step ends."""
        self._waiting.append({"step": self.step, "rank": _rank(), **record})

    def renaming(self, parameter: Tensor, name: str) -> tuple[str, str] | None:
        """(prefix, its replacement) that makes of names in a graph those of the block of the model that runs it.

        parameter: an input of the graph, which was compiled with the name `name` for it. None where it is that of
        another model of the same class, which the graph serves as well.
        """
        names = self._names.get(parameter.data_ptr())
        if names is None:
            self._names = _parameter_names(self.model())
            names = self._names.get(parameter.data_ptr(), set())
        if not names and isinstance(parameter, nn.Parameter):
            return None
        if not names or name in names:
            return "", ""
        ours, theirs = min(names).split("."), name.split(".")
        while ours and theirs and ours[-1] == theirs[-1]:
            ours.pop()
            theirs.pop()
        return ".".join(theirs), ".".join(ours)

    def has(self, inputs: GraphInputs, values: Sequence[Any]) -> bool:
        """Whether a graph with these inputs is of this model."""
        model = self.model()
        if model is None:
            return False
        own = {id(parameter) for parameter in model.parameters()}
        given = [values[position] for position in inputs.parameters]
        if any(isinstance(value, nn.Parameter) and type(value.data) is Tensor for value in given):
            return any(id(value) in own for value in given)
        names = set().union(*_parameter_names(model).values())
        return any(name in names for name in inputs.parameters.values())  # of stand-ins for them, by name

    def _is_sampled(self) -> bool:
        return self.step % self.every == 0

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        first = None if self._optimizer is None else self._optimizer()
        if first is None:
            model = self.model()
            own = set() if model is None else {id(parameter) for parameter in model.parameters()}
            if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
                return
            self._optimizer = weakref.ref(optimizer)
        elif first is not optimizer:
            return
        self._advance(None)

    def _advance(self, step: int | None) -> None:
        was_sampling = self.is_sampling
        self._flush()
        self.step = self.step + 1 if step is None else step
        self.is_sampling = self in _OPEN and self._is_sampled()
        if was_sampling and not self._has_recorded:
            self.close()
            raise RuntimeError(f"metis: nothing was recorded in the first step that was sampled: {self._why_nothing()}")

    def _flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self.records = as_numbers(in_order(waiting))
            self._has_recorded = True
            self._send(self.records)

    def _why_nothing(self) -> str:
        if not self.watched:
            return (
                'no training graph of this model was compiled with backend="metis" since monitor() was called: compile '
                "it with that backend, and call monitor before the first training step of this and of any other model "
                "of its class, whose code it may run (or call torch.compiler.reset() after it)"
            )
        if not any(watched.sites for watched in self.watched):
            return (
                "none of its products is quantized, or none of those that `modules` names: metis_compile.summary and "
                "explain say what the policy does"
            )
        return "no compiled part of the model ran forward and backward in it"


def watch(inputs: GraphInputs, values: Sequence[Any], cpu_kernels: bool) -> Watched | None:
    """What is to look at a graph that is being compiled, None where no monitor is open for the model that it is of."""
    for opened in _OPEN:
        if torch.is_grad_enabled() and opened.has(inputs, values):
            opened.watched.append(Watched(opened, cpu_kernels))
            return opened.watched[-1]
    return None


def clear() -> None:
    """Forgets the graphs that are looked at, as torch.compiler.reset() forgets every compiled graph."""
    for opened in _OPEN:
        opened.watched.clear()


def _rank() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if os.environ.get("WORLD_SIZE", "1") != "1" else 0


def _parameter_names(model: nn.Module | None) -> dict[int, set[str]]:
    """Where a parameter lies -> its names, without those of wrappers; a tied one has several."""
    found: dict[int, set[str]] = {}
    if model is None:
        return found
    tree = tree_of(model)
    for module in model.modules():
        name = tree.modules.get(id(module), "")
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(parameter.data_ptr(), set()).add(f"{name}.{attribute}" if name else attribute)
    return found
