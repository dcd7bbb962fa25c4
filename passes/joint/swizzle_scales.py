"""Have block scales written as tensor cores of compute capability 10.x take them, where nothing else reads them.

    quantize(x, spec, axis)  ->  quantize(x, spec, axis, swizzled=True)         see `metis_compile.numerics.swizzle`

A quantization's scales are swizzled if all that reads what is decoded from them are products that the block-scaled
template does. That is asked of the joint graph: what forward saves, backward reads. Blocks of 16x16 stay as they are:
their codes are read along both axes, and along one of them by another template.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import fx

from metis_compile.compat import detect_fake_mode
from metis_compile.kernels.capability import capability_of, copies_scales
from metis_compile.kernels.gemm.operand import Operand, parse
from metis_compile.numerics.swizzle import can_swizzle
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.calls import QuantizeCall
from metis_compile.passes.graph.products import PRODUCTS
from metis_compile.passes.graph.views import REARRANGEMENTS
from metis_compile.passes.lowering.fused_quantize import is_fused
from metis_compile.passes.lowering.packed_gemm import Packed, packed_operands

aten = torch.ops.aten


def swizzle_scales(context: PassContext) -> PassResult:
    """Changes the quantizations whose scales will be swizzled, in place."""
    return PassResult(changed=len(swizzle_in(context.graph)))


def swizzle_in(graph: fx.Graph) -> list[fx.Node]:
    """Changes the quantizations whose scales will be swizzled, in place; returns them."""
    products = {node for node in graph.nodes if _is_block_scaled(node)}
    found = [
        node
        for node in graph.find_nodes(op="call_function", target=QUANTIZE)
        if _has_swizzled_form(node) and _is_multiplied_only(node, products)
    ]
    for node in found:
        _swizzle(node)
    return found


def _is_block_scaled(node: fx.Node) -> bool:
    """Whether it is a product of packed operands that the block-scaled template does, where scales are copied."""
    sides = packed_operands(node) if node.target in PRODUCTS else None  # groups begin within a tile of scales
    if sides is None:
        return False
    capability = capability_of(node.meta["val"].device)
    if not copies_scales(capability):
        return False
    from metis_compile.kernels.gemm import block_scaled  # imports Triton, which not every machine has

    left, right = map(_operand, sides)
    return block_scaled.supports(left, right, capability)


def _operand(side: Packed) -> Operand:
    rank = side.parts[0].meta["val"].dim()
    return Operand(spec=parse(side.spec), axis=side.axis - rank, contracted=side.contract % rank - rank)


def _has_swizzled_form(node: fx.Node) -> bool:
    call = QuantizeCall.of(node)
    if call is None:
        return False
    ndim = call.x.meta["val"].dim()
    return call.axis >= ndim - 2 >= 0 and can_swizzle(call.spec) and is_fused(call)


def _is_multiplied_only(quantized: fx.Node, products: set[fx.Node]) -> bool:
    """Whether `products`, as operands, are all that reads what is decoded from the scales; and one does."""
    scales = [user for user in quantized.users if user.target is operator.getitem and user.args[1] == 1]
    decoded = [user for part in scales for user in part.users]
    readers = [reader for value in decoded for reader in _readers(value)]
    return (
        bool(readers)
        and all(value.target is DEQUANTIZE for value in decoded)
        and all(product in products and _is_operand(value, product) for product, value in readers)
    )


def _readers(value: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(node, what it reads) for all that reads elements of `value`, or of a rearrangement of it."""
    for user in value.users:
        if user.target in REARRANGEMENTS:
            yield from _readers(user)
        elif user.target is not aten.sym_size.int:
            yield user, value


def _is_operand(value: fx.Node, product: fx.Node) -> bool:
    """Whether the product multiplies `value`, and does not add it too."""
    multiplied: Sequence[int] = PRODUCTS[product.target]  # type: ignore[index]
    return all(i in multiplied for i, argument in enumerate(product.args) if argument is value)


def _swizzle(node: fx.Node) -> None:
    node.update_kwarg("swizzled", True)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    mode = detect_fake_mode([args[0]])
    if mode is None:
        raise RuntimeError("metis: the captured graph has no fake tensors, so nodes can't be typed")
    with mode:
        node.meta["val"] = QUANTIZE(*args, **kwargs)
    for part in node.users:
        if part.target is operator.getitem:
            part.meta["val"] = node.meta["val"][part.args[1]]
