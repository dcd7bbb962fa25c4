"""Lower metis ops: to C++ kernels on the CPU, to Triton kernels on CUDA, else to aten ops that Inductor fuses.

The kernels are byte for byte what `metis_compile.numerics` defines; the aten ops are traced from it, so they can't
drift. Without Triton kernels, a quantization whose codes are only decoded again in the same graph never packs them:
the values are made from the unquantized tensor, with the same bits.

On CUDA one call quantizes a tensor for all products that read it: see `tiles`. One scale for a tensor or for a row is
left to Inductor, whose kernel for it reads and writes as little: the scale comes from a reduction of its own, and the
codes are elementwise, in one pass with whatever else reads the tensor. Products read the codes: see `multiply`.

On CPUs with bfloat16 instructions a product whose two operands are exact in bfloat16 up to their tensor scales (E2M1
times E4M3 or E8M0, or a factor in bfloat16) is done on these, summed in float32, and multiplied by the tensor scales:
the same to summation order, and several times faster than float32. A thin product that is added to it is added in
place, and one that a split takes from a tensor is taken in one pass over it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from metis_compile.compat import bf16_gemm, lowers_to_triton
from metis_compile.kernels.cpu.calls import is_exact
from metis_compile.kernels.cpu.compile import INPUTS
from metis_compile.kernels.cpu.inductor import register_cpu_lowerings
from metis_compile.kernels.cpu.ops import (
    CPU_CAST,
    CPU_CAT,
    CPU_DECODE,
    CPU_PARTS,
    CPU_PRODUCT,
    CPU_TENSOR_SCALE,
    CPU_THIN_SUM,
    CPU_VALUES,
)
from metis_compile.kernels.gemm.lowering import register_gemm
from metis_compile.kernels.materialize import register_materialize
from metis_compile.kernels.parts import tensor_target
from metis_compile.kernels.quantize.inductor import register_tile_lowering
from metis_compile.numerics import QuantSpec, decode, encode, fake_quantize, materializing
from metis_compile.numerics.noise import stream_seed
from metis_compile.numerics.swizzle import swizzle
from metis_compile.ops import DEQUANTIZE, MATERIALIZE, QUANTIZE, TO_BFLOAT16, noise_of
from metis_compile.passes.bfloat16 import write_out_bfloat16
from metis_compile.passes.emit import Emitter
from metis_compile.passes.find import PRODUCTS
from metis_compile.passes.multiply import multiply_packed
from metis_compile.passes.tiles import quantize_in_tiles
from metis_compile.passes.trace import Tracer
from metis_compile.passes.views import from_bfloat16, strip_views

aten = torch.ops.aten
SHORT = 64  # contracted: of factors, less is no faster in bfloat16
MOST = 64  # contracted: of thin products, more is faster in BLAS


def lower(graph: fx.Graph, *, cpu_kernels: bool = True) -> int:
    """Replaces every metis.quantize and metis.dequantize of `graph`; returns how many there were. Thin sums too.

    cpu_kernels: whether what lies on the CPU goes to the C++ kernels.
    """
    cpu_kernels = cpu_kernels and not lowers_to_triton(torch.device("cpu"))
    nodes = [n for n in graph.nodes if n.target is QUANTIZE or n.target is DEQUANTIZE]
    write_out_bfloat16(graph, leave=lambda cast: cpu_kernels and bool(nodes) and _on_cpu(cast))
    if not nodes:
        return 0
    lowering = _Lowering(graph, cpu_kernels)
    register_materialize()
    if multiply_packed(lowering.emitter):
        register_gemm()
        graph.eliminate_dead_code()  # what nothing decodes any more
    if quantize_in_tiles(lowering.emitter, lowering.tracer, [n for n in nodes if n.target is QUANTIZE]):
        register_tile_lowering()
    if cpu_kernels:
        register_cpu_lowerings()
        lowering.residuals()
        if bf16_gemm() is not None:
            lowering.exact_products()
        lowering.factors()
    for node in nodes:
        if node.target is QUANTIZE:
            if len(node.users) > 0:
                lowering.quantize(node)
        elif len(node.users) > 0:
            lowering.dequantize(node)
    graph.eliminate_dead_code()
    return len(nodes)


class _Lowering:
    def __init__(self, graph: fx.Graph, cpu_kernels: bool) -> None:
        self.graph = graph
        self.emitter = Emitter(graph)
        self.cpu_kernels = cpu_kernels
        self.tracer = Tracer(self.emitter, lambda: materializing(MATERIALIZE))
        self._exact: dict[fx.Node, fx.Node] = {}
        self._joined: dict[fx.Node, fx.Node] = {}
        self._buffers: dict[fx.Node, fx.Node] = {}
        self._tensor_scales: dict[Any, list[fx.Node]] = {}

    def residuals(self) -> None:
        """Takes thin products from what was split in one pass."""
        for node in self.graph.find_nodes(op="call_function", target=aten.sub.Tensor):
            if not node.meta.get("metis_tail") or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
                continue
            x, thin = node.args
            if _is_thin_product(thin, node) and x.meta["val"].dtype == torch.float32:
                with self.emitter.at(node, like=node):
                    args = (x, *map(self._narrow, thin.args), -1.0)
                    node.replace_all_uses_with(self.emitter.call(CPU_THIN_SUM, args, name=f"{node.name}_thin"))
                self.graph.erase_node(node)
                self.graph.erase_node(thin)

    def exact_products(self) -> None:
        """Replaces the products that two exact operands feed."""
        for node in list(self.graph.nodes):
            if node.target not in PRODUCTS or node.target is aten.addbmm.default or not _is_scaled_sum(node):
                continue
            sides = [node.args[i] for i in PRODUCTS[node.target]]
            stripped = [strip_views(s, s.meta["val"].dim() + axis) for s, axis in zip(sides, (-1, -2), strict=True)]
            bases = [base for base, _, _ in stripped]
            factors = any(from_bfloat16(base) for base in bases)
            if all(self._is_exact(base) for base in bases) and not (factors and _is_short(sides[0])):
                self._exact_product(node, [(base, views) for base, _, views in stripped])

    def factors(self) -> None:
        """Casts and joins factors by calls: each is too small to be worth a kernel that must be compiled."""
        self.graph.eliminate_dead_code()  # what kernels read as it was
        for node in list(self.graph.nodes):
            cast = node.target is TO_BFLOAT16 or (node.meta.get("metis_tail") and from_bfloat16(node))
            join = node.meta.get("metis_tail") and _joins_alike(node)
            if not (cast or join) or not _on_cpu(node) or not _is_factor(node):
                continue
            with self.emitter.at(node, like=node):
                if cast:
                    args = (node.args[0], node.meta["val"].dtype)
                    made = self.emitter.call(CPU_CAST, args, name=f"{node.name}_call")
                else:
                    made = self._join(node, node.args[0])
            node.replace_all_uses_with(made)
            self.graph.erase_node(node)

    def _join(self, like: fx.Node, parts: Any) -> fx.Node:
        dim = like.args[1] if len(like.args) > 1 else 0
        return self.emitter.call(CPU_CAT, (parts, dim), name=f"{like.name}_call")

    def _narrow(self, factor: Any) -> fx.Node:
        """A factor, where the emitter stands: as it was before it was cast from bfloat16, if it was."""
        base, _, views = strip_views(factor, 0)
        value = self._narrow_base(base)
        if value is base:
            return factor  # type: ignore[no-any-return]
        for view in views:
            value = self.emitter.call(view.target, (value, *view.args[1:]), view.kwargs)  # type: ignore[arg-type]
        return value

    def _narrow_base(self, base: fx.Node) -> fx.Node:
        if from_bfloat16(base):
            return base.args[0]  # type: ignore[return-value]
        if base.target is aten.full.default and base.args[1] == 1:
            return self.emitter.call(base.target, base.args, {**base.kwargs, "dtype": torch.bfloat16})
        if _joins_alike(base) and base not in self._joined:
            parts: Any = base.args[0]
            with self.emitter.at(base, like=base):
                narrow = [self._narrow_base(part) for part in parts]
                if not any(new is old for new, old in zip(narrow, parts, strict=True)):
                    self._joined[base] = self._join(base, narrow)
        return self._joined.get(base, base)

    def _is_exact(self, base: fx.Node) -> bool:
        if base.target is not DEQUANTIZE:
            return from_bfloat16(base) and base.meta["val"].device.type == "cpu"
        parts: Any = base.args[0]
        on_cpu = all(p.meta["val"].device.type == "cpu" for p in parts)
        return on_cpu and is_exact(QuantSpec.parse(str(base.args[1])))

    def _exact_product(self, node: fx.Node, sides: list[tuple[fx.Node, Sequence[fx.Node]]]) -> None:
        operands, decs = [], []
        for base, views in sides:
            value = self._exact_value(base)
            with self.emitter.at(node, like=node):
                for view in views:
                    value = self.emitter.call(view.target, (value, *view.args[1:]), view.kwargs)  # type: ignore[arg-type]
            operands.append(value)
            if base.target is DEQUANTIZE and tensor_target(QuantSpec.parse(str(base.args[1]))) is not None:
                decs.append(base.args[0][-1])  # type: ignore[index]
        sums, tails = _with_tails(node)
        whole = sums[-1]
        with self.emitter.at(whole, like=node):
            tails = [self._narrow(factor) for factor in tails]
            added: Any = node.args[0] if node.target in (aten.addmm.default, aten.baddbmm.default) else None
            along = added is not None and bool(tails) and _is_row(added)
            whole_added = added is not None and _is_float32_like(added, node)
            given = (*operands, decs, tails, added if along else None, added if whole_added else None)
            product = self.emitter.call(CPU_PRODUCT, (*given, node.kwargs.get("alpha", 1.0)), name=f"{node.name}_exact")
            if added is not None and not along and not whole_added:
                product = self.emitter.call(aten.add.Tensor, (product, added))
        whole.replace_all_uses_with(product)
        for replaced in reversed(sums):
            self.graph.erase_node(replaced)

    def _exact_value(self, base: fx.Node) -> fx.Node:
        """In bfloat16, without a tensor scale."""
        if base not in self._exact:
            if base.target is DEQUANTIZE:
                with self.emitter.at(base, like=base):
                    args = (*base.args, True)
                    self._exact[base] = self.emitter.call(CPU_DECODE, args, name=f"{base.name}_exact")
            else:
                self._exact[base] = base.args[0]  # type: ignore[assignment]
        return self._exact[base]

    def quantize(self, node: fx.Node) -> None:
        """Emits the parts that leave the graph, and the values for each dequantize of the parts in this graph."""
        parts = [u for u in node.users if u.target is operator.getitem]
        kernel = self._has_kernel(node.args[0])
        decoders = {u for p in parts for u in p.users if _decodes(u, node) and (kernel or u.target is DEQUANTIZE)}
        stored = [p for p in parts if any(u not in decoders for u in p.users)]
        if kernel:
            self._call_kernels(node, decoders, stored)
            return
        results = self._trace_numerics(node, bool(decoders), stored)
        for part, result in zip(stored, results, strict=False):
            part.replace_all_uses_with(result, delete_user_cb=lambda u: u not in decoders)
        for decoder in decoders:
            decoder.replace_all_uses_with(results[-1])

    def _has_kernel(self, x: Any) -> bool:
        value = x.meta["val"]
        return self.cpu_kernels and value.device.type == "cpu" and value.dtype in INPUTS

    def _call_kernels(self, node: fx.Node, decoders: set[fx.Node], stored: list[fx.Node]) -> None:
        x, text, axis = node.args[:3]
        seed, stream = (*node.args[3:], None, 0)[:2]
        spec = QuantSpec.parse(str(text))
        with self.emitter.at(node, like=node):
            x = self._stored(x)
            tensor_scale = self._tensor_scale(x, tensor_target(spec))
            given = [*tensor_scale, *([] if seed is None else [seed])]
            for exact in (False, True):
                users = [d for d in decoders if (d.target is CPU_DECODE) == exact]
                if users:
                    args = (x, given, text, axis, stream, exact)
                    values = self.emitter.call(CPU_VALUES, args, name=f"{users[0].name}_values")
                    for user in users:
                        user.replace_all_uses_with(values)
            results: dict[int, fx.Node] = dict(enumerate(tensor_scale[1:], len(node.meta["val"]) - 1))
            if any(p.args[1] not in results for p in stored):
                made = self.emitter.call(CPU_PARTS, (x, given, text, axis, stream), name=f"{node.name}_parts")
                for i in range(len(made.meta["val"])):
                    results[i] = self.emitter.call(operator.getitem, (made, i))
        for part in stored:
            part.replace_all_uses_with(results[part.args[1]], delete_user_cb=lambda u: u not in decoders)  # type: ignore[index]

    def _stored(self, x: Any) -> fx.Node:
        """x in one buffer, for all calls that read it: Inductor would have each store its own."""
        if x.op == "placeholder":
            return x  # type: ignore[no-any-return]
        if x not in self._buffers:
            self._buffers[x] = self.emitter.call(MATERIALIZE, (x,), name=f"{x.name}_stored")
        return self._buffers[x]

    def _tensor_scale(self, x: Any, target: float | None) -> list[fx.Node]:
        """[enc, dec] of x, made once for all that quantize x; nothing where the format has no tensor scale."""
        if target is None:
            return []
        if (x, target) not in self._tensor_scales:
            made = self.emitter.call(CPU_TENSOR_SCALE, (x, target), name=f"{x.name}_tensor_scale")
            self._tensor_scales[x, target] = [self.emitter.call(operator.getitem, (made, i)) for i in range(2)]
        return self._tensor_scales[x, target]

    def _trace_numerics(self, node: fx.Node, decoded: bool, stored: list[fx.Node]) -> list[fx.Node]:
        """The `stored` parts and then the values, as aten ops."""
        x, text, axis = node.args[:3]
        swizzled = node.kwargs.get("swizzled", False)
        seed, stream = (*node.args[3:], None, 0)[:2]
        spec = QuantSpec.parse(str(text))

        def run(x: torch.Tensor, *seed: torch.Tensor) -> list[torch.Tensor]:
            noise = noise_of(x, spec, axis, seed[0] if seed else None, 0)  # type: ignore[arg-type]
            kept = encode(x, spec, axis, noise) if stored else []  # type: ignore[arg-type]
            if kept and swizzled:
                kept[1] = swizzle(kept[1], axis)  # type: ignore[arg-type]
            values = [fake_quantize(x, spec, axis, noise)] if decoded else []  # type: ignore[arg-type]
            return [kept[int(p.args[1])] for p in stored] + values  # type: ignore[arg-type]

        key = (text, axis, tuple(p.args[1] for p in stored), decoded, swizzled)
        return self._emit(node, key, run, [x] if seed is None else [x, self._stream(node, seed, stream)])

    def _stream(self, node: fx.Node, seed: Any, stream: Any) -> fx.Node:
        """The seed of one stream, as a node: what is traced for one stream then serves all."""
        (result,) = self._emit(node, ("stream", stream), lambda seed: [stream_seed(seed, stream)], [seed])
        return result

    def dequantize(self, node: fx.Node) -> None:
        """Emits the decoding of parts that another graph made."""
        parts, text, axis, length = node.args
        if self.cpu_kernels and all(p.meta["val"].device.type == "cpu" for p in parts):  # type: ignore[union-attr]
            with self.emitter.at(node, like=node):
                values = self.emitter.call(CPU_DECODE, (parts, text, axis, length, False), name=f"{node.name}_kernel")
            node.replace_all_uses_with(values)
            return
        spec = QuantSpec.parse(str(text))
        symbolic = [length] if isinstance(length, fx.Node) else []

        def run(*inputs: Any) -> list[torch.Tensor]:
            tensors, size = (inputs[:-1], inputs[-1]) if symbolic else (inputs, length)
            return [decode(tensors, spec, axis, size)]  # type: ignore[arg-type]

        key = (text, axis, None if symbolic else length)
        (result,) = self._emit(node, key, run, [*parts, *symbolic])  # type: ignore[misc]
        node.replace_all_uses_with(result)

    def _emit(self, node: fx.Node, key: Any, run: Callable[..., Any], inputs: Sequence[Any]) -> list[fx.Node]:
        """Inserts what `run` does to `inputs` before `node`, in its place."""
        with self.emitter.at(node, like=node):
            return self.tracer.insert((node.target, key), run, inputs, node.name)


def _decodes(user: fx.Node, quantized: fx.Node) -> bool:
    """Whether `user` decodes exactly the parts of `quantized`, all in this graph."""
    if user.target not in (DEQUANTIZE, CPU_DECODE):
        return False
    parts: Any = user.args[0]
    return all(p.target is operator.getitem and p.args[0] is quantized for p in parts)


def _on_cpu(node: fx.Node) -> bool:
    return bool(node.meta["val"].device.type == "cpu")


def _is_factor(node: fx.Node) -> bool:
    """Whether it is few columns or rows; of TO_BFLOAT16 nothing else is made."""
    shape = node.meta["val"].shape
    return node.target is TO_BFLOAT16 or any(isinstance(size, int) and size <= MOST for size in shape)


def _joins_alike(node: fx.Node) -> bool:
    """Whether it puts tensors of one dtype side by side."""
    if node.target is not aten.cat.default:
        return False
    parts: Any = node.args[0]
    return len({part.meta["val"].dtype for part in parts}) == 1


def _is_row(bias: fx.Node) -> bool:
    value = bias.meta["val"]
    return value.dim() == 1 and value.dtype == torch.float32


def _is_scaled_sum(product: fx.Node) -> bool:
    """Whether it is a number times the product, and what it is added to as it is."""
    return bool(product.kwargs.get("beta", 1) == 1 and isinstance(product.kwargs.get("alpha", 1), (int, float)))


def _is_float32_like(added: fx.Node, result: fx.Node) -> bool:
    value = added.meta["val"]
    return bool(value.dtype == torch.float32 and value.shape == result.meta["val"].shape)


def _is_short(left: Any) -> bool:
    """Whether few elements are contracted."""
    length = left.meta["val"].shape[-1]
    return isinstance(length, int) and length < SHORT


def _with_tails(product: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """`product` and the sums with thin products that end in what is used of it, and the factors of these products."""
    sums, factors = [product], []
    while len(sums[-1].users) == 1:
        (user,) = sums[-1].users
        others: list[Any] = [a for a in user.args if a is not sums[-1]]
        if user.target is not aten.add.Tensor or user.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node):
            break
        (tail,) = others
        if not _is_thin_product(tail, product):
            break
        sums.append(user)
        factors += tail.args
    return sums, factors


def _is_thin_product(node: fx.Node, like: fx.Node) -> bool:
    """Whether it is a product of few columns and rows on the CPU, read once, of this shape."""
    if node.target is not aten.mm.default or not node.meta.get("metis_tail") or len(node.users) != 1:
        return False
    value, (rank, _) = node.meta["val"], node.args[1].meta["val"].shape  # type: ignore[union-attr]
    small = isinstance(rank, int) and rank <= MOST
    return bool(small and value.device.type == "cpu" and value.shape == like.meta["val"].shape)
