"""Ops that torch-mlir does not lower, or not to what they do, as others that it does lower, with the same bits.

A rule is a pair (targets, handler); a handler emits what replaces the node, where it stands, and returns it, or
returns None to leave it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from metis_compile.passes.graph.builder import GraphBuilder

aten = torch.ops.aten
prims = torch.ops.prims
metis = torch.ops.metis

Handler = Callable[[GraphBuilder, fx.Node], "fx.Node | None"]


def simplify(graph: fx.Graph) -> None:
    """Applies the rules to a graph, in place."""
    builder = GraphBuilder(graph)
    for node in list(graph.nodes):
        handler = _HANDLERS.get(node.target)
        if node.op != "call_function" or handler is None:
            continue
        with builder.at(node, like=node):
            new = handler(builder, node)
        if new is not None:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _tensor(builder: GraphBuilder, value: Any, like: fx.Node) -> fx.Node:
    """A number as a tensor of no dimensions, of the dtype of `like`; a node as it is."""
    if isinstance(value, fx.Node):
        return value
    meta = like.meta["val"]
    return builder.call(aten.full.default, ([], value), {"dtype": meta.dtype, "device": meta.device})


def _shift(target: Any) -> Handler:
    def handler(builder: GraphBuilder, node: fx.Node) -> fx.Node:
        shape = list(node.meta["val"].shape)
        operands = [_tensor(builder, operand, node) for operand in node.args]
        for i, operand in enumerate(operands):
            if list(operand.meta["val"].shape) != shape:  # torch-mlir broadcasts none of them for StableHLO
                operands[i] = builder.call(aten.expand.default, (operand, shape))
        return builder.call(target, tuple(operands))

    return handler


def _negative(builder: GraphBuilder, x: fx.Node) -> fx.Node:
    """Whether the sign bit is set: of -0.0 and of NaNs too."""
    bits = builder.call(aten.view.dtype, (builder.cast(x, torch.float32), torch.int32))
    return builder.call(aten.lt.Scalar, (bits, 0))


def _copysign(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    magnitude, sign = node.args
    if not isinstance(magnitude, fx.Node) or not isinstance(sign, fx.Node):
        return None
    magnitude = builder.call(aten.abs.default, (magnitude,))
    negated = builder.call(aten.neg.default, (magnitude,))
    return builder.call(aten.where.self, (_negative(builder, sign), negated, magnitude))


def _signbit(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    (x,) = node.args
    return _negative(builder, x) if isinstance(x, fx.Node) and x.meta["val"].is_floating_point() else None


def _e8m0_from_bytes(builder: GraphBuilder, node: fx.Node) -> fx.Node:
    return builder.call(aten.view.dtype, (node.args[0], torch.float8_e8m0fnu))


def _e8m0_to_bytes(builder: GraphBuilder, node: fx.Node) -> fx.Node:
    return builder.call(aten.view.dtype, (node.args[0], torch.uint8))


def _reshape(builder: GraphBuilder, node: fx.Node) -> fx.Node:
    return builder.call(aten.view.default, (node.args[0], list(node.meta["val"].shape)))


def _iota(builder: GraphBuilder, node: fx.Node) -> fx.Node:
    (length,), kwargs = node.args, node.kwargs
    start, step = kwargs["start"], kwargs["step"]
    args = (start, start + length * step, step)  # type: ignore[operator]
    made = builder.call(aten.arange.start_step, args, {"dtype": torch.int64, "device": kwargs["device"]})
    return builder.cast(made, kwargs["dtype"])  # type: ignore[arg-type]


def _reciprocal(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """torch-mlir's own asserts that no element is 0; the numerics make that infinite and clamp it."""
    (x,) = node.args
    if not isinstance(x, fx.Node) or not x.meta["val"].is_floating_point():
        return None
    return builder.call(aten.div.Tensor, (_tensor(builder, 1.0, x), x))


def _leading_power(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """2^floor(log2 a), for the numerics |q - |q (1 - 2^-24)|| with q = a (2^23 + 1), from the exponent's bits.

    A compiler that contracts the difference into a fused multiply-add gets something else. The two differ where a is
    subnormal, which the numerics clamp, and infinite, which they never pass.
    """
    difference: Any = node.args[0]
    if not _is_call(difference, aten.sub.Tensor):
        return None
    q, magnitude = difference.args
    if not _is_call(magnitude, aten.abs.default):
        return None
    scaled = magnitude.args[0]
    if not _is_call(scaled, aten.mul.Tensor, q, 1 - 2.0**-24) or not _is_call(q, aten.mul.Tensor, None, 2.0**23 + 1):
        return None
    bits = builder.call(aten.view.dtype, (q.args[0], torch.int32))
    bits = builder.call(aten.bitwise_and.Scalar, (bits, 0x7F800000))
    return builder.call(aten.view.dtype, (bits, torch.float32))


def _is_call(node: Any, target: Any, *args: Any) -> bool:
    """Whether a node calls `target` with these arguments, None standing for any."""
    if not isinstance(node, fx.Node) or node.target is not target:
        return False
    return all(wanted is None or wanted == given for wanted, given in zip(args, node.args, strict=False))


def _flip(builder: GraphBuilder, node: fx.Node) -> fx.Node:
    return builder.call(aten.flip.default, (node.args[0], node.args[1]))


def _add_rows(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """x with values[i] added to row indices[i] where mask[i]: as a product with a matrix of ones and zeros.

    What the backward of an embedding does. A scatter would be for each compiler to order; the product sums in float32.
    """
    x, mask, indices, values = node.args
    rows = indices[0] if isinstance(indices, (list, tuple)) and len(indices) == 1 else None
    if not all(isinstance(n, fx.Node) for n in (x, mask, rows, values)):
        return None
    assert isinstance(x, fx.Node)
    assert isinstance(rows, fx.Node)
    table, count = x.meta["val"].shape, rows.meta["val"].numel()
    if len(table) != 2 or mask.meta["val"].numel() != count:  # type: ignore[union-attr]
        return None
    device = {"dtype": torch.int64, "device": x.meta["val"].device}
    numbers = builder.call(aten.arange.start_step, (0, table[0], 1), device)
    wanted = builder.call(aten.view.default, (rows, [1, count]))
    # an index below 0 counts from the end
    wrapped = builder.call(aten.add.Tensor, (wanted, table[0]))
    wanted = builder.call(aten.where.self, (builder.call(aten.lt.Scalar, (wanted, 0)), wrapped, wanted))
    hit = builder.call(aten.eq.Tensor, (builder.call(aten.view.default, (numbers, [table[0], 1])), wanted))
    hit = builder.call(aten.bitwise_and.Tensor, (hit, builder.call(aten.view.default, (mask, [1, count]))))
    flat = builder.cast(builder.call(aten.reshape.default, (values, [count, table[1]])), torch.float32)
    total = builder.call(aten.mm.default, (builder.cast(hit, torch.float32), flat))
    return builder.cast(builder.call(aten.add.Tensor, (total, x)), node.meta["val"].dtype)


def _any(builder: GraphBuilder, node: fx.Node) -> fx.Node:
    x, dims, keep = (*node.args, None, False)[:3] if len(node.args) < 3 else node.args[:3]
    dims = node.kwargs.get("dim", dims)
    if dims is None:
        dims = list(range(x.meta["val"].dim()))  # type: ignore[union-attr]
    args = (builder.cast(builder.call(aten.ne.Scalar, (x, 0)), torch.int32), dims, node.kwargs.get("keepdim", keep))
    return builder.call(aten.gt.Scalar, (builder.call(aten.amax.default, args), 0))


def _scatter_value(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """One place along `dim` set to a value, in each row: what the backward of a cross entropy does."""
    x, dim, index, value = node.args
    if not isinstance(x, fx.Node) or not isinstance(index, fx.Node) or not isinstance(dim, int):
        return None
    shape, wanted = list(x.meta["val"].shape), list(index.meta["val"].shape)
    along = [1] * len(shape)
    along[dim] = shape[dim]
    if wanted != [1 if i == dim % len(shape) else size for i, size in enumerate(shape)]:
        return None
    options = {"dtype": torch.int64, "device": x.meta["val"].device}
    numbers = builder.call(
        aten.view.default, (builder.call(aten.arange.start_step, (0, shape[dim], 1), options), along)
    )
    hit = builder.call(aten.eq.Tensor, (numbers, index))
    return builder.call(aten.where.self, (hit, _tensor(builder, value, x), x))


def _summed_in_float32(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """Sums and products of narrower floats, which torch-mlir sums in their own dtype, and torch does not."""
    dtype = node.meta["val"].dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    args = [builder.cast(a, torch.float32) if isinstance(a, fx.Node) else a for a in node.args]
    kwargs = {name: value for name, value in node.kwargs.items() if name != "dtype"}
    return builder.cast(builder.call(node.target, tuple(args), kwargs), dtype)  # type: ignore[arg-type]


def _narrow_integers(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """Floats to 8 and 16 bits by way of int32.

    torch-mlir converts to them as to integers with a sign. What is out of their range, as 128 to 255 are for uint8, is
    then poison: some CPUs clamp it, others wrap it. Cutting off the high bits of an int32 is defined.
    """
    dtype = node.meta["val"].dtype
    x: Any = node.args[0]
    if dtype not in _NARROW_INTEGERS or not x.meta["val"].is_floating_point():
        return None
    return builder.cast(builder.cast(x, torch.int32), dtype)


def _uint8_in_int32(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """Arithmetic and comparisons of uint8 with something else, for which torch-mlir extends its sign."""
    tensors = [a for a in node.args if isinstance(a, fx.Node)]
    if not any(x.meta["val"].dtype == torch.uint8 for x in tensors):
        return None
    args = [
        builder.cast(a, torch.int32) if isinstance(a, fx.Node) and a.meta["val"].dtype == torch.uint8 else a
        for a in node.args
    ]
    return builder.cast(builder.call(node.target, tuple(args), dict(node.kwargs)), node.meta["val"].dtype)  # type: ignore[arg-type]


def _negated_integers(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """Integers that torch-mlir negates in float32, which does not hold them all."""
    x: Any = node.args[0]
    dtype = x.meta["val"].dtype
    if dtype.is_floating_point or dtype.is_complex:
        return None
    wide = x if dtype == torch.int64 else builder.cast(x, torch.int32)
    return builder.cast(builder.call(aten.rsub.Scalar, (wide, 0)), dtype)


_NARROW_INTEGERS = (torch.uint8, torch.int8, torch.int16)
RULES: list[tuple[tuple[Any, ...], Handler]] = [
    (
        (
            aten.__rshift__.Scalar,
            aten.__rshift__.Tensor,
            aten.bitwise_right_shift.Tensor_Scalar,
            aten.bitwise_right_shift.Scalar_Tensor,
        ),
        _shift(aten.bitwise_right_shift.Tensor),
    ),
    (
        (
            aten.__lshift__.Scalar,
            aten.__lshift__.Tensor,
            aten.bitwise_left_shift.Tensor_Scalar,
            aten.bitwise_left_shift.Scalar_Tensor,
        ),
        _shift(aten.bitwise_left_shift.Tensor),
    ),
    ((aten.copysign.Tensor,), _copysign),
    ((aten.signbit.default,), _signbit),
    ((metis.e8m0_from_bytes.default,), _e8m0_from_bytes),
    ((metis.e8m0_to_bytes.default,), _e8m0_to_bytes),
    ((aten.squeeze.dims, aten.squeeze.dim, aten.squeeze.default), _reshape),
    ((aten.reciprocal.default,), _reciprocal),
    ((aten.abs.default,), _leading_power),
    ((aten.any.default, aten.any.dims), _any),
    ((aten.scatter.value,), _scatter_value),
    (
        (
            aten.sum.dim_IntList,
            aten.sum.default,
            aten.mean.dim,
            aten.mean.default,
            aten.mm.default,
            aten.bmm.default,
            aten.addmm.default,
            aten.baddbmm.default,
        ),
        _summed_in_float32,
    ),
    ((aten._to_copy.default, prims.convert_element_type.default), _narrow_integers),
    (
        (
            aten.eq.Scalar,
            aten.ne.Scalar,
            aten.lt.Scalar,
            aten.le.Scalar,
            aten.gt.Scalar,
            aten.ge.Scalar,
            aten.add.Tensor,
            aten.sub.Tensor,
            aten.rsub.Scalar,
            aten.mul.Tensor,
            aten.div.Tensor,
            aten.div.Tensor_mode,
            aten.floor_divide.default,
            aten.remainder.Scalar,
            aten.maximum.default,
            aten.minimum.default,
        ),
        _uint8_in_int32,
    ),
    ((aten.neg.default,), _negated_integers),
    ((prims.iota.default,), _iota),
    ((prims.rev.default,), _flip),
    ((aten._unsafe_masked_index_put_accumulate.default,), _add_rows),
]
_HANDLERS = {target: handler for targets, handler in RULES for target in targets}
