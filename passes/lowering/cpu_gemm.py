"""Products and thin sums on the CPU, in calls of the C++ kernels.

On CPUs with bfloat16 instructions a product whose two operands are exact in bfloat16 up to their tensor scales (E2M1
times E4M3 or E8M0, or a factor in bfloat16) is done on these, summed in float32, and multiplied by the tensor scales:
the same to summation order, and several times faster than float32. A thin product that is added to it is added in
place, and one that a split takes from a tensor is taken in one pass over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from metis_compile.compat import bf16_gemm
from metis_compile.kernels.cpu.inductor import register_cpu_lowerings
from metis_compile.kernels.cpu.launch import is_exact
from metis_compile.kernels.cpu.ops import CPU_CAST, CPU_CAT, CPU_DECODE, CPU_GROUPED, CPU_PRODUCT, CPU_THIN_SUM
from metis_compile.kernels.parts import tensor_target
from metis_compile.ops.buffers import TO_BFLOAT16
from metis_compile.ops.grouped import GROUPED_MM
from metis_compile.ops.quantization import DEQUANTIZE
from metis_compile.ops.residual import RESIDUAL
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.calls import DequantizeCall, ResidualCall
from metis_compile.passes.graph.products import OPERANDS, PRODUCTS
from metis_compile.passes.graph.views import from_bfloat16, strip_views

__all__ = ["lower_cpu_gemms", "takes_residual"]

aten = torch.ops.aten
SHORT = 64  # contracted: of factors, less is no faster in bfloat16
MOST = 64  # contracted: of thin products, more is faster in BLAS


def lower_cpu_gemms(context: PassContext) -> PassResult:
    """Replaces the products and thin sums that the kernels take, and casts and joins factors by calls."""
    graph = context.graph
    if not context.calls_cpu_kernels:
        return PassResult()
    register_cpu_lowerings()
    before = set(graph.nodes)
    products = _Products(context.builder)
    products.residuals()
    if bf16_gemm() is not None:
        products.exact_products()
    products.factors()
    return PassResult(changed=len(set(graph.nodes) - before))


def takes_residual(call: ResidualCall) -> bool:
    """Whether the kernel for thin sums makes it: of few factors, on the CPU."""
    rank = 0 if call.left is None else call.left.meta["val"].shape[1]
    return isinstance(rank, int) and 0 < rank <= MOST and _on_cpu(call.node)


class _Products:
    def __init__(self, builder: GraphBuilder) -> None:
        self.builder = builder
        self.graph = builder.graph
        self._exact: dict[fx.Node, fx.Node] = {}
        self._joined: dict[fx.Node, fx.Node] = {}

    def residuals(self) -> None:
        """Takes thin products from what was split in one pass."""
        for node in self.graph.find_nodes(op="call_function", target=RESIDUAL):
            call = ResidualCall.of(node)
            if call is None or not takes_residual(call):
                continue
            with self.builder.at(node, like=node):
                x = self.builder.cast(call.x, torch.float32)
                if call.mean is not None:
                    x = self.builder.call(aten.sub.Tensor, (x, call.mean))
                args = (x, self._narrow(call.left), self._narrow(call.right), -1.0)
                node.replace_all_uses_with(self.builder.call(CPU_THIN_SUM, args, name=f"{node.name}_thin"))
            self.graph.erase_node(node)

    def exact_products(self) -> None:
        """Replaces the products that two exact operands feed."""
        for node in list(self.graph.nodes):
            if not (node.target is GROUPED_MM or _is_scaled_sum(node)):
                continue
            sides = [node.args[i] for i in OPERANDS[node.target]]
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
            with self.builder.at(node, like=node):
                if cast:
                    args = (node.args[0], node.meta["val"].dtype)
                    made = self.builder.call(CPU_CAST, args, name=f"{node.name}_call")
                else:
                    made = self._join(node, node.args[0])
            node.replace_all_uses_with(made)
            self.graph.erase_node(node)

    def _join(self, like: fx.Node, parts: Any) -> fx.Node:
        dim = like.args[1] if len(like.args) > 1 else 0
        return self.builder.call(CPU_CAT, (parts, dim), name=f"{like.name}_call")

    def _narrow(self, factor: Any) -> fx.Node:
        """A factor, where the builder stands: as it was before it was cast from bfloat16, if it was."""
        base, _, views = strip_views(factor, 0)
        value = self._narrow_base(base)
        if value is base:
            return factor  # type: ignore[no-any-return]
        for view in views:
            value = self.builder.call(view.target, (value, *view.args[1:]), view.kwargs)  # type: ignore[arg-type]
        return value

    def _narrow_base(self, base: fx.Node) -> fx.Node:
        if from_bfloat16(base):
            return base.args[0]  # type: ignore[return-value]
        if base.target is aten.full.default and base.args[1] == 1:
            return self.builder.call(base.target, base.args, {**base.kwargs, "dtype": torch.bfloat16})
        if _joins_alike(base) and base not in self._joined:
            parts: Any = base.args[0]
            with self.builder.at(base, like=base):
                narrow = [self._narrow_base(part) for part in parts]
                if not any(new is old for new, old in zip(narrow, parts, strict=True)):
                    self._joined[base] = self._join(base, narrow)
        return self._joined.get(base, base)

    def _is_exact(self, base: fx.Node) -> bool:
        decoded = DequantizeCall.of(base)
        if decoded is None:
            return from_bfloat16(base) and _on_cpu(base)
        return all(map(_on_cpu, decoded.parts)) and is_exact(decoded.spec)

    def _exact_product(self, node: fx.Node, sides: list[tuple[fx.Node, Sequence[fx.Node]]]) -> None:
        operands, decs = [], []
        for base, views in sides:
            value = self._exact_value(base)
            with self.builder.at(node, like=node):
                for view in views:
                    value = self.builder.call(view.target, (value, *view.args[1:]), view.kwargs)  # type: ignore[arg-type]
            operands.append(value)
            decoded = DequantizeCall.of(base)
            if decoded is not None and tensor_target(decoded.spec) is not None:
                decs.append(decoded.parts[-1])
        if node.target is GROUPED_MM:
            with self.builder.at(node, like=node):
                args = (*operands, node.args[2], decs)
                node.replace_all_uses_with(self.builder.call(CPU_GROUPED, args, name=f"{node.name}_exact"))
            self.graph.erase_node(node)
            return
        sums, tails = _with_tails(node)
        whole = sums[-1]
        with self.builder.at(whole, like=node):
            tails = [self._narrow(factor) for factor in tails]
            added: Any = node.args[0] if node.target in (aten.addmm.default, aten.baddbmm.default) else None
            along = added is not None and bool(tails) and _is_row(added)
            whole_added = added is not None and _is_float32_like(added, node)
            given = (*operands, decs, tails, added if along else None, added if whole_added else None)
            product = self.builder.call(CPU_PRODUCT, (*given, node.kwargs.get("alpha", 1.0)), name=f"{node.name}_exact")
            if added is not None and not along and not whole_added:
                product = self.builder.call(aten.add.Tensor, (product, added))
        whole.replace_all_uses_with(product)
        for replaced in reversed(sums):
            self.graph.erase_node(replaced)

    def _exact_value(self, base: fx.Node) -> fx.Node:
        """In bfloat16, without a tensor scale."""
        if base not in self._exact:
            if base.target is DEQUANTIZE:
                with self.builder.at(base, like=base):
                    args = (*base.args, True)
                    self._exact[base] = self.builder.call(CPU_DECODE, args, name=f"{base.name}_exact")
            else:
                self._exact[base] = base.args[0]  # type: ignore[assignment]
        return self._exact[base]


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
    """Whether it is a number times a product, and what it is added to as it is."""
    if product.target not in PRODUCTS or product.target is aten.addbmm.default:
        return False
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
