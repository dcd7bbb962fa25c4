"""The kernels of a joint graph: what is one kernel, what it reads, what it writes, and how many FLOPs it takes.

Products, attention, reductions and what else is not elementwise are kernels of their own. Elementwise operators are
part of what reads them, as Inductor fuses them, unless their result has to be in memory: where a product reads it, or
a quantization of what the model computes, where it is an output, where a reduction and something else read it, or
where it has more readers than one and reads more than `_MOST_READ` tensors itself. Views, and what decodes a quantized
tensor, are part of their readers always. The sum that adds a thin product to something is part of the product, and the
thin products that are added to a large one are part of that, as our kernels have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from metis_compile.compat import OpOverload, size_hint
from metis_compile.cost_model.kernels import Kernel, Number, number, unit_of
from metis_compile.numerics import QuantSpec
from metis_compile.ops.basis import FRESH_BASIS, POWER_STEP
from metis_compile.ops.buffers import TO_BFLOAT16
from metis_compile.ops.hadamard import HADAMARD, INVERSE_HADAMARD
from metis_compile.ops.held_amax import HELD_AMAX
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE, amax_of
from metis_compile.ops.residual import RESIDUAL
from metis_compile.ops.state import LOAD

aten = torch.ops.aten
MARK = "metis_site"  # in the metadata of a node that a rewrite added: the place of its product among the graph's sites
_MOST_READ = 4  # tensors: Inductor's own limit
_ALIASES = {aten._unsafe_view.default, aten.reshape.default, getitem}
_ROTATIONS = {HADAMARD, INVERSE_HADAMARD}  # of 16 elements each, by what reads them
_MADE = {aten.full.default, aten.scalar_tensor.default, torch.ops.prims.iota.default}
_ELEMENTWISE = {TO_BFLOAT16, aten._to_copy.default, *_MADE, *_ROTATIONS}
_GATHERS = {aten.embedding.default, aten.index.Tensor, aten.gather.default, aten.index_select.default}
_REDUCTIONS = ("sum", "amax", "amin", "mean", "var", "var_mean", "std_mean", "argmax", "argmin", "any", "prod")
# what torch's counter counts on a GPU alone: the same operators on a CPU, and products by groups
_SDPA = aten._scaled_dot_product_flash_attention_for_cpu
_SDPA_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A kernel, and where it belongs."""

    kernel: Kernel
    sites: tuple[int, ...]  # the products that it is for, by their place; none for what the model itself calculates
    node: fx.Node


def flops_of(node: fx.Node) -> Number:
    """FLOPs of a product, as torch.utils.flop_counter has them, or of attention; 0 for all else."""
    packet = getattr(node.target, "overloadpacket", None)
    formula: Any = flop_registry.get(packet)
    values: Any = fx.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    args, kwargs = values
    if formula is not None:
        return number(formula(*args, **kwargs, out_val=node.meta["val"]))
    if packet is _SDPA:
        return number(sdpa_flop_count(*(x.shape for x in args[:3])))
    if packet is _SDPA_BACKWARD:
        return number(sdpa_backward_flop_count(*(x.shape for x in args[:4])))
    if node.target is aten._grouped_mm.default:
        a, b = args[0].shape, args[1].shape
        return number(2 * prod(a) * b[-1])
    return 0


def kernels_of(graph: fx.Graph, products: Mapping[str, int]) -> list[Placed]:
    """The kernels of a joint graph, in order. products: names of nodes -> places of the sites that they are."""
    return _Reader(graph, products).read()


class _Reader:
    def __init__(self, graph: fx.Graph, products: Mapping[str, int]) -> None:
        self.nodes = list(graph.nodes)
        self.products = products
        self._reads: dict[fx.Node, dict[fx.Node, fx.Node]] = {}
        self.in_memory: set[fx.Node] = set()
        self.last: dict[fx.Node, fx.Node] = {}  # the last node of a product's kernel -> the product
        self.first: set[fx.Node] = set()  # products that end in another node
        self.added: set[fx.Node] = set()  # thin products that a large one adds as it goes
        self.for_sites: dict[fx.Node, frozenset[int]] = {}
        self.read_before: set[Any] = set()  # tensors that a quantization reads: the next one has what it read

    def read(self) -> list[Placed]:
        self._fuse_sums()
        for node in self.nodes:
            self._place(node)
        for node in reversed(self.nodes):
            self.for_sites[node] = self._sites_of(node)
        return [
            Placed(kernel=kernel, sites=tuple(sorted(self.for_sites[node])), node=node)
            for node in self.nodes
            for kernel in self._kernels(node)
        ]

    # what is in memory

    def _fuse_sums(self) -> None:
        """The large products first: they take in the thin ones that are added to them."""
        made = [n for n in self.nodes if MARK in n.meta and n.op == "call_function" and _is_product(n)]
        for node in sorted(made, key=lambda n: n.name not in self.products):
            if node not in self.added:
                self._fuse_behind(node)

    def _fuse_behind(self, product: fx.Node) -> None:
        """Sums and casts behind a product that a rewrite made, as long as each is all that reads the one before."""
        last = product
        while len(last.users) == 1:
            (user,) = last.users
            if MARK not in user.meta or not _is_elementwise(user) or user in self.last or not _alike(user, last):
                break
            others = [n for n in user.all_input_nodes if n is not last]
            self.added |= {n for n in others if MARK in n.meta and _is_product(n) and len(n.users) == 1}
            last = user
        if last is not product:
            self.last[last] = product
            self.first.add(product)

    def _place(self, node: fx.Node) -> None:
        """Says what a node reads, and whether its result is in memory."""
        if not _holds_tensors(node):
            return
        if node.op != "call_function":
            self.in_memory.add(node)
        elif _is_alias(node):
            self._reads[node] = self._behind(node)
            source: Any = node.args[0]
            if not isinstance(source.meta["val"], Tensor) and source in self.in_memory:
                self.in_memory.add(node)  # one of several results
        else:
            reads: dict[fx.Node, fx.Node] = {}
            for source in node.all_input_nodes:
                reads |= {} if source in self.added else self.reads(source)
            self._reads[node] = reads
            if node in self.last:
                self.in_memory.add(node)
            elif node in self.first or node in self.added or node.target is DEQUANTIZE or _is_made_cast(node):
                return
            elif not _is_elementwise(node) or self._must_be_in_memory(node, reads):
                self.in_memory.add(node)

    def reads(self, node: fx.Node) -> dict[fx.Node, fx.Node]:
        """Tensors in memory that a reader of `node` reads -> the view of each that it reads."""
        return {node: node} if node in self.in_memory else self._reads.get(node, {})

    def _behind(self, node: fx.Node) -> dict[fx.Node, fx.Node]:
        """What a reader of a view reads: of a tensor in memory, no more than the view shows of it."""
        source: Any = node.args[0]
        found = self.reads(source)
        return {tensor: node if _hint(node) < _hint(view) else view for tensor, view in found.items()}

    def _must_be_in_memory(self, node: fx.Node, reads: Mapping[fx.Node, fx.Node]) -> bool:
        readers = list(_readers(node))
        kinds = {_kind_of_reader(r, node) for r in readers}
        if "whole" in kinds:
            return True
        return len(readers) > 1 and ("reduction" in kinds or len(reads) > _MOST_READ)

    # whose it is

    def _sites_of(self, node: fx.Node) -> frozenset[int]:
        """The products that a node is for: those that what a rewrite added leads to, or that it was added for."""
        if node.name in self.products:
            return frozenset({self.products[node.name]})
        if MARK not in node.meta or node.target is aten.randint.low:  # one seed serves the graph
            return frozenset()
        found = frozenset(
            site
            for user in node.users
            if MARK in user.meta or user.name in self.products
            for site in self.for_sites[user]
        )
        return found or frozenset({node.meta[MARK]})

    # what a kernel is

    def _kernels(self, node: fx.Node) -> list[Kernel]:
        product = self.last.get(node, node)
        if node.op != "call_function" or _is_alias(node) or not _holds_tensors(node):
            return []
        if node.target is DEQUANTIZE:
            return [self._decode(node)]
        if node.target is QUANTIZE:
            return self._quantization(node)
        if node.target is HELD_AMAX:  # a pass once in so many steps
            return []
        if node not in self.in_memory and node not in self.added:
            return []
        flops, kind = flops_of(product), self._kind(product)
        reads = self._reads[node]
        if node.target in _GATHERS or node.target is LOAD:
            reads = dict.fromkeys(reads, node)
        own = MARK not in node.meta
        traffic = [*reads.values(), *([] if node in self.added else _results(node))]
        return [
            Kernel(
                kind=kind,
                name=_name(product.target),
                unit="tf32x3" if node in self.added else self._unit(product),
                cpu_unit=self._unit(product, through_casts=True),
                flops=flops,
                nbytes=sum(map(_bytes, traffic)),
                own_float32=sum(_bytes(n) for n in traffic if _is_own_float32(n)),
                is_part=node in self.added,
                own=own,
            )
        ]

    def _kind(self, node: fx.Node) -> str:
        if node.target in (FRESH_BASIS, POWER_STEP):
            return "bases"
        if node.name in self.products:
            return "product"
        if MARK in node.meta:
            return "other" if node.target is aten.randint.low else "tails"
        if "attention" in _name(node.target):
            return "attention"
        return "product" if _is_product(node) else "other"

    def _unit(self, node: fx.Node, *, through_casts: bool = False) -> str:
        """What multiplies: by the formats of both operands, or by the dtype that the graph has.

        through_casts: of one that is not quantized, the dtype before it was cast.
        """
        formats, dtypes = [], []
        for source in _operands(node) if _is_product(node) else ():
            spec = _decoded_from(source)
            if spec is not None:
                formats.append(spec.format)
            else:
                dtypes.append(_dtype_before_casts(source) if through_casts else source.meta["val"].dtype)
        if len(formats) > 1:
            return unit_of(*formats)
        if formats and not through_casts:  # decoded, in float32
            return "float32"
        return "float32" if torch.float32 in dtypes else "bfloat16"

    def _quantization(self, node: fx.Node) -> list[Kernel]:
        """One kernel, which reads the tensor unless one before did; and before it one for the scale of the tensor,

        unless its amax is held.
        """
        source: Any = node.args[0]
        spec = QuantSpec.parse(str(node.args[1]))
        key = source, node.meta.get("partitioner_tag") == "is_backward"
        is_first = key not in self.read_before
        self.read_before.add(key)
        read = list(self.reads(source).values()) if is_first else []
        written = sum((_bytes_of(x) for x in node.meta["val"]), start=0)
        own_float32 = sum(_bytes(n) for n in read if _is_own_float32(n))
        kernels = []
        if is_first and (spec.fmt.tensor_scale or spec.block == "tensor") and amax_of(node) is None:
            nbytes = sum(map(_bytes, read))
            kernels.append(_quantize("tensor scale", nbytes, own_float32, 0, is_part=False))
        nbytes = sum(map(_bytes, read)) + written
        kernels.append(_quantize("quantize", nbytes, own_float32, _numel(source.meta["val"]), is_part=not is_first))
        return kernels

    def _decode(self, node: fx.Node) -> Kernel:
        parts: Any = node.args[0]
        elements = _numel(node.meta["val"])
        nbytes = 2 * elements + sum((_bytes_of(p.meta["val"]) for p in parts), start=0)  # to bfloat16
        return Kernel(kind="decode", name="decode", unit="bfloat16", nbytes=nbytes, own=False)


def _quantize(name: str, nbytes: Number, own_float32: Number, elements: Number, *, is_part: bool) -> Kernel:
    return Kernel(
        kind="quantization",
        name=name,
        unit="quantize",
        nbytes=nbytes,
        own_float32=own_float32,
        elements=elements,
        is_part=is_part,
        own=False,
    )


def _holds_tensors(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value))


def _is_alias(node: fx.Node) -> bool:
    return node.target in _ALIASES or (isinstance(node.target, OpOverload) and node.target.is_view)


def _is_elementwise(node: fx.Node) -> bool:
    if node.target in _ELEMENTWISE or _is_centered(node):
        return True
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags


def _is_product(node: fx.Node) -> bool:
    if node.target in _ROTATIONS or _is_centered(node):
        return False
    packet = getattr(node.target, "overloadpacket", None)
    return packet in flop_registry or packet in (_SDPA, _SDPA_BACKWARD) or node.target is aten._grouped_mm.default


def _is_centered(node: fx.Node) -> bool:
    """Whether it subtracts a mean alone; with factors a residual is their product, and the difference part of it."""
    return node.target is RESIDUAL and len(node.args) < 3


def _kind_of_reader(reader: fx.Node, node: fx.Node) -> str:
    """ "whole": needs it in memory; "reduction": may be fused with it; "elementwise" is."""
    if reader.op == "output" or _is_product(reader) or reader.target is DEQUANTIZE:
        return "whole"
    if reader.target in (QUANTIZE, HELD_AMAX):  # calculates what is added or subtracted as it reads
        return "whole" if MARK not in node.meta else "elementwise"
    if _is_elementwise(reader):
        return "elementwise"
    return "reduction" if _name(reader.target) in _REDUCTIONS else "whole"


def _readers(node: fx.Node) -> Any:
    """What reads a node, views passed by."""
    for user in node.users:
        if user.op == "call_function" and _is_alias(user):
            yield from _readers(user)
        elif user.op == "output" or _holds_tensors(user) or user.users:
            yield user


def _alike(a: fx.Node, b: fx.Node) -> bool:
    return tuple(a.meta["val"].shape) == tuple(b.meta["val"].shape)


def _operands(node: fx.Node) -> list[Any]:
    """The two matrices of a product."""
    matrices = [a for a in node.args if isinstance(a, fx.Node) and isinstance(a.meta.get("val"), Tensor)]
    if _name(node.target) in ("addmm", "baddbmm"):
        return matrices[1:3]
    if node.target is RESIDUAL:
        return matrices[-2:]
    return matrices[:2]


def _through(node: Any, passes: Callable[[Any], bool]) -> Any:
    while node.op == "call_function" and passes(node) and isinstance(node.args[0].meta["val"], Tensor):
        node = node.args[0]
    return node


def _decoded_from(node: Any) -> QuantSpec | None:
    found = _through(node, lambda n: _is_alias(n) or _is_cast(n))
    return QuantSpec.parse(str(found.args[1])) if found.target is DEQUANTIZE else None


def _dtype_before_casts(node: Any) -> torch.dtype:
    dtype: torch.dtype = _through(node, lambda n: _is_alias(n) or _is_made_cast(n)).meta["val"].dtype
    return dtype


def _is_cast(node: Any) -> bool:
    return node.target in (aten._to_copy.default, torch.ops.prims.convert_element_type.default)


def _is_made_cast(node: Any) -> bool:
    """Whether a rewrite cast what it calculates with: kernels read what was cast."""
    return MARK in node.meta and _is_cast(node)


def _is_own_float32(node: fx.Node) -> bool:
    value = node.meta["val"]
    return MARK not in node.meta and isinstance(value, Tensor) and value.dtype == torch.float32


def _results(node: fx.Node) -> list[fx.Node]:
    """The tensors that a kernel writes: its own, or those that are read of several."""
    if isinstance(node.meta["val"], Tensor):
        return [node]
    return [user for user in node.users if user.target is getitem and user.users]


def _bytes(node: fx.Node) -> Number:
    return _bytes_of(node.meta["val"])


def _bytes_of(value: Any) -> Number:
    if isinstance(value, Tensor):
        return _numel(value) * value.dtype.itemsize
    return sum((_bytes_of(v) for v in value), start=0) if isinstance(value, (tuple, list)) else 0


def _numel(value: Tensor) -> Number:
    return prod(number(size) for size in value.shape)


def _hint(node: fx.Node) -> int:
    value = node.meta["val"]
    return prod(map(size_hint, value.shape)) if isinstance(value, Tensor) else 0


def _name(target: Any) -> str:
    if isinstance(target, OpOverload):
        return str(target._schema.name).rpartition("::")[2]
    return str(getattr(target, "__name__", target))
