"""One compiled graph that is monitored: what is run beside its calls in a step that is sampled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from metis_compile.compat import around_compiled, compile_fx_inner, in_backward
from metis_compile.monitoring.blocks import BlockOf, added_block
from metis_compile.monitoring.half import Half, Wanted
from metis_compile.monitoring.watched_sites import WatchedOperand, WatchedSite, watched_sites
from metis_compile.naming.graph_names import moved
from metis_compile.numerics import QuantSpec
from metis_compile.passes.graph.sites import GraphInputs, Site
from metis_compile.statistics import left_block, operand_statistics, product_error, right_block

if TYPE_CHECKING:
    from metis_compile.monitoring.monitor import Monitor

__all__ = ["Watched"]

aten = torch.ops.aten
log = logging.getLogger("metis_compile.monitoring")
_Run = Callable[[list[Any]], Any]


@dataclass(kw_only=True)
class _Call:
    """A forward that was sampled, and whose backward is to come."""

    rename: tuple[str, str]
    saved: set[int]  # where the tensors lie that it gave
    blocks: dict[tuple[str, str], _Block] = field(default_factory=dict)  # (product, side) -> what is looked at of it


class Watched:
    """A record of one compile (`Recorder`), and what Inductor is asked to compile its two graphs with."""

    def __init__(self, monitor: Monitor, cpu_kernels: bool) -> None:
        self.monitor, self.cpu_kernels = monitor, cpu_kernels
        self.sites: list[WatchedSite] = []
        self.parameters: dict[str, str] = {}  # graph input -> the parameter's name
        self._forward_half: Half | None = None
        self._backward_half: Half | None = None
        self._step = -1
        self._forwards: dict[Any, int] = {}  # whose call -> how many forwards it had in this step
        self._calls: dict[Any, _Call] = {}

    def nested(self, sites: list[Site]) -> None:
        return None

    def before(self, graph: fx.Graph, inputs: GraphInputs) -> None:
        return None

    def after(self, graph: fx.Graph, sites: list[Site], parameters: dict[str, str], state: Sequence[str]) -> None:
        self.sites = watched_sites(sites)
        self.parameters = parameters

    def compiling(self, inner_compile: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """What compiles one graph, as `inner_compile` or Inductor does; what it gives is watched, but for inference."""
        compile_one = compile_fx_inner if inner_compile is None else inner_compile

        def compiled(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
            half = Half(gm, self.cpu_kernels) if self.sites and not kwargs.get("is_inference") else None
            compiled = compile_one(gm, example_inputs, **kwargs)
            if half is None:
                return compiled
            if kwargs.get("is_backward"):
                self._backward_half = half
                return around_compiled(compiled, self._backward)
            self._forward_half = half
            return around_compiled(compiled, self._forward)

        return compiled

    def _forward(self, run: _Run, inputs: list[Any]) -> Any:
        if not self.monitor.is_sampling:
            return run(inputs)
        half = self._forward_half
        assert half is not None
        self._begin_step()
        known = dict(zip(half.inputs, inputs, strict=True))
        owner, rename = self._owner(known)
        if rename is None:
            return run(inputs)
        runs_again = in_backward()  # a checkpointed forward: what its backward reads comes from this one
        before = self._forwards.get(owner, 0)
        self._forwards[owner] = max(before + (not runs_again), 1)
        if before > runs_again:
            return run(inputs)
        for name in half.written:  # with what it held before this call
            known[name] = known[name].clone()
        known |= half.loaded(known)
        given = {value.data_ptr() for value in inputs if isinstance(value, Tensor)}
        results = run(inputs)
        for name, value in zip(half.outputs, results, strict=True):
            if name is not None:
                known.setdefault(name, value)
        saved = {value.data_ptr() for value in results if isinstance(value, Tensor)} - given
        call = self._calls[owner] = _Call(rename=rename, saved=saved)
        wanted = list(self._kept_blocks(half, call))
        if not before:  # else it was recorded when it ran first
            wanted += [*self._operands(half, call), *self._products(half, call)]
        self._run(half, known, wanted)
        return results

    def _backward(self, run: _Run, inputs: list[Any]) -> Any:
        if not self.monitor.is_sampling or self._step != self.monitor.step:
            return run(inputs)
        half, call = self._backward_half, self._call_of(inputs)
        if half is not None and call is not None:
            # before the compiled graph, which may write into what forward saved
            wanted = [*self._operands(half, call), *self._products(half, call)]
            self._run(half, dict(zip(half.inputs, inputs, strict=True)), wanted)
        return run(inputs)

    def _begin_step(self) -> None:
        if self._step != self.monitor.step:
            self._step = self.monitor.step
            self._forwards.clear()
            self._calls.clear()

    def _owner(self, known: Mapping[str, Any]) -> tuple[Any, tuple[str, str] | None]:
        """Whose call this is, of the blocks of a class that share a graph, and how names change for it."""
        for name, parameter in self.parameters.items():
            value = known.get(name)
            if isinstance(value, Tensor):
                return value.data_ptr(), self.monitor.renaming(value, parameter)
        return None, ("", "")

    def _call_of(self, inputs: Sequence[Any]) -> _Call | None:
        """The sampled forward of a backward: the one that gave what it reads, or the only one that there was."""
        places = {value.data_ptr() for value in inputs if isinstance(value, Tensor) and value.numel()}
        for owner, call in self._calls.items():
            if places & call.saved:
                return self._calls.pop(owner)
        if sum(self._forwards.values()) == 1 and self._calls:  # what it saved was moved, or it saved nothing
            return self._calls.popitem()[1]
        return None

    def _run(self, half: Half, known: Mapping[str, Any], wanted: Sequence[Wanted]) -> None:
        devices = {value.device for value in known.values() if isinstance(value, Tensor)}
        with _undisturbed(devices):
            half.run(known, wanted)

    def _wanted(self, call: _Call) -> list[WatchedSite]:
        return [site for site in self.sites if self.monitor.wants(moved(site.module, *call.rename))]

    def _operands(self, half: Half, call: _Call) -> Iterator[Wanted]:
        """What is quantized in this graph, each once for all products that read it."""
        readers: dict[str, list[tuple[WatchedSite, WatchedOperand]]] = {}
        for site in self._wanted(call):
            for operand in site.operands:
                if operand.quantized is not None and self._is_here(half, operand.quantized):
                    readers.setdefault(operand.quantized, []).append((site, operand))
        for name, pairs in readers.items():
            node: Any = half.node(name)
            source, seed, stream = node.args[0].name, *(*(a for a in node.args[3:5]), None, 0)[:2]
            if not half.has(pairs[0][1].base):
                log.info("metis: %s is not there where it is quantized, and is not recorded", pairs[0][1].base)
                continue
            needs = {source, pairs[0][1].base, *([] if seed is None else [seed.name])}
            quantized = _Quantized(
                source=source, seed=None if seed is None else seed.name, stream=stream, readers=tuple(pairs)
            )
            yield Wanted(names=frozenset(needs), visit=partial(self._visit_operand, quantized, call))

    def _visit_operand(self, quantized: _Quantized, call: _Call, values: Mapping[str, Any]) -> None:
        operand = quantized.readers[0][1]
        assert operand.format is not None
        found = operand_statistics(
            values[operand.base],
            QuantSpec.parse(operand.format),
            operand.axis,
            quantized=None if quantized.source == operand.base else values[quantized.source],
            is_split=operand.split is not None,
            seed=None if quantized.seed is None else values[quantized.seed],
            stream=quantized.stream,
            vectors=self.monitor.vectors,
            what_if=self.monitor.what_if,
            cpu_kernels=self.cpu_kernels,
        )
        for site, read in quantized.readers:
            about = {name: getattr(read, name) for name in ("side", "format", "split", "hadamard")}
            self._add(site, call, read.role, about, found)

    def _is_here(self, half: Half, quantized: str) -> bool:
        """Whether a quantization is to be looked at in this graph: in backward, what forward has not done."""
        in_forward = self._forward_half is not None and self._forward_half.calls(quantized)
        return half.calls(quantized) and (half is self._forward_half or not in_forward)

    def _products(self, half: Half, call: _Call) -> Iterator[Wanted]:
        """The products of this graph, of those whose operands can be had as they were."""
        for site in self._wanted(call):
            if site.is_grouped or site.result is None or not (half.calls(site.product) and half.calls(site.result)):
                continue
            sides = [self._block(half, site, operand, call) for operand in site.operands]
            if not all(sides):
                log.info("metis: an operand of %s of %s is not there, and its error not known", site.gemm, site.module)
                continue
            node, result = half.node(site.product), BlockOf(half.node(site.result))
            given: Any = node.args[0] if node.target in (aten.addmm.default, aten.baddbmm.default) else None
            added = None if given is None else given.name
            needs = result.needs.union(*(side.needs for side in sides if side), () if added is None else {added})
            product = _Product(site=site, sides=sides, result=result, added=added, scales=dict(node.kwargs))
            yield Wanted(names=frozenset(needs), visit=partial(self._visit_product, product, call))

    def _visit_product(self, product: _Product, call: _Call, values: Mapping[str, Any]) -> None:
        left, right = (side.value(values) for side in product.sides)
        shape = [*left.shape[:-1], right.shape[-1]]
        added = None if product.added is None else added_block(values[product.added], shape)
        result = product.result.value(values, shape)
        error = product_error(result, left.block, right.block, added, **product.scales)
        self._add(product.site, call, "product", {}, {"error": error})

    def _kept_blocks(self, half: Half, call: _Call) -> Iterator[Wanted]:
        """What products in backward will be compared with, of operands that are there in forward alone."""
        backward = self._backward_half
        for site in self._wanted(call):
            for operand in site.operands:
                is_there = operand.role != "activation" if backward is None else backward.has(operand.base)
                if site.is_grouped or half.calls(site.product) or is_there or not half.has(operand.base):
                    continue
                side = self._block(half, site, operand, call)
                if side is not None:
                    yield Wanted(names=side.needs, visit=partial(self._keep_block, site, side, call))

    @staticmethod
    def _keep_block(site: WatchedSite, side: _Side, call: _Call, values: Mapping[str, Any]) -> None:
        call.blocks[site.product, side.name] = side.value(values)

    def _block(self, half: Half, site: WatchedSite, operand: WatchedOperand, call: _Call) -> _Side | None:
        """How to get what is looked at of an operand as it was; None where it can't be had."""
        kept = call.blocks.get((site.product, operand.side))
        if kept is not None:
            return _Side(name=operand.side, needs=frozenset(), value=lambda _: kept)
        read = [node.name for view in operand.views for node in view.all_input_nodes[1:]]  # symbolic sizes
        if not all(half.has(name) for name in (operand.base, *read)):
            return None
        pick = left_block if operand.side == "left" else right_block

        def value(values: Mapping[str, Any]) -> _Block:
            matrix = values[operand.base]
            for view in operand.views:
                args, kwargs = fx.node.map_arg((view.args[1:], view.kwargs), lambda node: values[node.name])
                target: Any = view.target
                matrix = target(matrix, *args, **kwargs)
            return _Block(shape=matrix.shape, block=pick(matrix))

        return _Side(name=operand.side, needs=frozenset((operand.base, *read)), value=value)

    def _add(
        self, site: WatchedSite, call: _Call, operand: str, about: Mapping[str, Any], found: Mapping[str, Any]
    ) -> None:
        key = {"site": moved(site.module, *call.rename), "op": site.op, "gemm": site.gemm, "call": site.call}
        self.monitor.add({**key, "operand": operand, **about, **found})


@dataclass(frozen=True, kw_only=True, eq=False)
class _Quantized:
    """A quantization, by the names of what it reads."""

    source: str
    seed: str | None
    stream: int
    readers: tuple[tuple[WatchedSite, WatchedOperand], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    shape: Sequence[int]  # of the whole operand
    block: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    name: str
    needs: frozenset[str]
    value: Callable[[Mapping[str, Any]], _Block]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Product:
    site: WatchedSite
    sides: Sequence[Any]
    result: BlockOf
    added: str | None
    scales: dict[str, Any]  # alpha and beta


@contextmanager
def _undisturbed(devices: set[torch.device]) -> Iterator[None]:
    """Within: no gradients and no autocast, and the random numbers that are drawn are drawn again after it."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng([d for d in devices if d.type == "cuda"]))
        for kind in {device.type for device in devices} & {"cpu", "cuda"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
