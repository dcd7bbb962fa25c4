"""Hand packed operands to the product itself, where Inductor makes Triton kernels.

    mm(dequantize(a_parts), permute(dequantize(b_parts))) + mm(u, s)  ->  metis.gemm(a_parts, ..., b_parts, ..., [u, s])

The codes of an operand go in as they lie: transposes between it and the product become the axis that is contracted.
What else reads the decoded values decodes them as before. The thin products that a split adds join the sum; rows that
are added, casts and what follows are left to Inductor, which fuses them into the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from metis_compile.compat import lowers_to_triton
from metis_compile.kernels.capability import capability_of
from metis_compile.kernels.gemm.grouped_op import GROUPED_GEMM
from metis_compile.kernels.gemm.lowering import register_gemm
from metis_compile.kernels.gemm.op import GEMM, MAX_TAILS
from metis_compile.ops.grouped import GROUPED_MM
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.calls import DequantizeCall
from metis_compile.passes.graph.products import OPERANDS, PRODUCTS
from metis_compile.passes.graph.views import same, shape_of, strip_views

aten = torch.ops.aten

THIN = 256  # columns of a product that joins another's sum


class Packed(NamedTuple):
    """What `metis.gemm` takes of an operand."""

    parts: Sequence[fx.Node]
    spec: str
    axis: int  # along which it is packed
    length: Any  # along that axis
    contract: int  # the axis that the product contracts


class Sum(NamedTuple):
    """What is added to a product: up to the node `last`."""

    last: fx.Node
    tails: list[Any]  # the factors of thin products, left and right in turn
    rows: list[fx.Node]  # added to every row


def pack_gemms(context: PassContext) -> PassResult:
    """Hands packed operands to the GEMM templates."""
    made = pack_products(context.builder)
    if made:
        register_gemm()
        context.graph.eliminate_dead_code()  # what nothing decodes any more
    return PassResult(changed=len(made))


def pack_products(builder: GraphBuilder) -> list[fx.Node]:
    """Replaces the products whose operands are both decoded matrices on a GPU; returns the new nodes."""
    made = []
    for node in list(builder.graph.nodes):
        operands = packed_operands(node) if node.users else None  # what joined another's sum has none
        if operands is not None:
            made.append(_replace(builder, node, operands))
    return made


def multiplies_packed(device: torch.device) -> bool:
    """Whether templates multiply packed operands on a device: with bfloat16 tensor cores."""
    return lowers_to_triton(device) and (device.type != "cuda" or capability_of(device) >= 80)


def packed_operands(node: fx.Node) -> list[Packed] | None:
    """The operands of a product that `metis.gemm` can do, None for any other node."""
    if node.target is not GROUPED_MM and (node.target not in PRODUCTS or any(v != 1 for v in node.kwargs.values())):
        return None
    if node.target is aten.addbmm.default or not multiplies_packed(node.meta["val"].device):
        return None
    sides = [_packed(node.args[i], axis) for i, axis in zip(OPERANDS[node.target], (-1, -2), strict=True)]
    return [side for side in sides if side is not None] if all(sides) else None


def _packed(operand: Any, axis: int) -> Packed | None:
    """An operand that the product contracts along `axis`; None where it is no decoded matrix."""
    rank = operand.meta["val"].dim()
    base, contract, _ = strip_views(operand, rank + axis)
    decoded = DequantizeCall.of(base)
    if decoded is None or base.meta["val"].dim() != rank:
        return None
    if not all(same(a, b) for a, b in zip(shape_of(base)[:-2], shape_of(operand)[:-2], strict=True)):
        return None  # broadcast over a batch
    if decoded.axis != contract and not decoded.spec.orientation_free:
        return None
    return Packed(decoded.parts, str(decoded.spec), decoded.axis, decoded.length, contract)


def _replace(builder: GraphBuilder, node: fx.Node, operands: Sequence[Packed]) -> fx.Node:
    if node.target is GROUPED_MM:
        with builder.at(node, like=node):
            product = builder.call(GROUPED_GEMM, (*operands[0], *operands[1], node.args[2]), name=f"{node.name}_packed")
        node.replace_all_uses_with(product)
        return product
    last, tails, rows = _added(node)
    if node.target in (aten.addmm.default, aten.baddbmm.default):
        rows = [node.args[0], *rows]  # type: ignore[list-item]
    with builder.at(last, like=node):
        product = builder.call(GEMM, (*operands[0], *operands[1], tails), name=f"{node.name}_packed")
        result = product
        for row in rows:
            result = builder.call(aten.add.Tensor, (result, row), name=f"{node.name}_added")
    last.replace_all_uses_with(result)
    return product


def _added(node: fx.Node) -> Sum:
    """The additions that follow `node` and nothing else reads: of thin products, and of rows among these."""
    last, tails, rows = node, list[Any](), list[fx.Node]()
    while len(last.users) == 1:
        (user,) = last.users
        if user.target is not aten.add.Tensor or user.kwargs or len(user.args) != 2:
            break
        other = user.args[1] if user.args[0] is last else user.args[0]
        if not isinstance(other, fx.Node) or not other.meta.get("metis_tail"):
            break
        if _is_row(other, node):
            rows.append(other)
        elif _is_thin(other, node) and len(tails) < 2 * MAX_TAILS:
            tails += other.args
        else:
            break
        last = user
    return Sum(last, tails, rows)


def _is_row(tail: fx.Node, product: fx.Node) -> bool:
    rows, columns = shape_of(tail)
    return same(rows, 1) and same(columns, shape_of(product)[-1])


def _is_thin(tail: fx.Node, product: fx.Node) -> bool:
    if tail.target is not aten.mm.default or len(tail.users) > 1 or product.meta["val"].dim() != 2:
        return False
    rank = shape_of(tail.args[0])[1]  # type: ignore[arg-type]
    like = all(same(a, b) for a, b in zip(shape_of(tail), shape_of(product), strict=True))
    return isinstance(rank, int) and rank <= THIN and like
