"""How many values a graph may keep: counted on Dynamo's graph, before there is a joint one.

A few functions are known by name, and what their matrices are. Any other is run on the graph's fake tensors, and the
products that it comes down to are counted: those of a recurrent cell, of `einsum`, of `cdist`. It is an estimate from
above; a basis that finds no room all the same is made anew in each step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils._python_dispatch import TorchDispatchMode

from metis_compile.compat import FakeTensor, enable_python_dispatcher, select_decomp_table
from metis_compile.conditioning import kept_step, largest_rank
from metis_compile.passes.graph.products import PRODUCTS
from metis_compile.policy import OPERANDS, Policy

aten = torch.ops.aten
log = logging.getLogger("metis_compile.state")
# functions whose matrices are told from their arguments
KNOWN = ("linear", "mm", "addmm", "matmul", "bmm", "baddbmm", "tensordot", "grouped_mm")


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
                read, given = _features(node) if _is_known(node) else _found_by_running(node)
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


def _name(node: fx.Node) -> str:
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return name.split(".")[0].strip("_").removesuffix("_fallback")  # transformers has a grouped_mm of its own


def _is_known(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and _name(node) in KNOWN


def _found_by_running(node: fx.Node) -> tuple[list[list[int]], list[list[int]]]:
    """As `_features`, of the products that a call comes down to."""
    read: list[list[int]] = []
    given: list[list[int]] = []
    if node.op in ("call_function", "call_method"):
        for left, right in _products_of(node):
            known = [size for size in (left.shape[-2], right.shape[-1]) if _known(size)]
            sides = [_columns(left), _columns(right)]
            read += sides
            given += [*sides, [max(map(int, known), default=0)]]
    return read, given


def _products_of(node: fx.Node) -> list[tuple[Tensor, Tensor]]:
    """Pairs of matrices that a call multiplies, on fake tensors: none of a call that can't be run so."""
    values = (n.meta.get("example_value") for n in node.all_input_nodes)
    modes = [value.fake_mode for value in values if isinstance(value, FakeTensor)]
    if not modes:
        return []
    fake_mode: Any = modes[0]  # Dynamo may have made anew those of the inputs, in another mode with the same symbols
    env = fake_mode.shape_env
    new_symbols = nullcontext() if env is None else env.ignore_fresh_unbacked_symbols()
    found = _Products()
    try:
        # with hooks of its own: those of a checkpoint around the compiled model count what is saved for backward
        with saved_tensors_hooks(_as_it_is, _as_it_is), fake_mode, enable_python_dispatcher(), new_symbols, found:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), _alike)
            if node.op == "call_method":
                getattr(args[0], str(node.target))(*args[1:], **kwargs)
            elif callable(node.target):
                node.target(*args, **kwargs)
    except Exception as error:  # an operator with a graph inside, or one that looks at values
        log.debug("what %s multiplies is not known: %s", node.target, error)
    return found.pairs


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _alike(node: fx.Node) -> Any:
    """A tensor like the node's own, which the call may change."""
    value = node.meta.get("example_value")
    if not isinstance(value, FakeTensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return made.requires_grad_(value.requires_grad)  # matmul folds a batch away for the sake of gradients


class _Products(TorchDispatchMode):
    """Notes the matrices that are multiplied, batches of one and sums over a batch among them."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.decompositions: Any = select_decomp_table()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            left, right = (args[i] for i in PRODUCTS[func])
            if func is aten.addbmm.default:
                left, right = left.transpose(0, 1).flatten(1), right.flatten(0, 1)
            if left.dim() == 2 or (_known(left.shape[0]) and left.shape[0] == 1):
                self.pairs.append((left, right))
        elif func in self.decompositions and torch.Tag.pointwise not in func.tags:
            with self:
                result = self.decompositions[func](*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))


def _columns(matrix: Tensor) -> list[int]:
    """How many columns the tensor has that `matrix` is, or is the transpose of; both sides where that is not seen."""
    *_, rows, columns = matrix.shape
    if matrix.stride(-1) != 1 and matrix.stride(-2) == 1:
        rows, columns = columns, rows
    sides = [columns] if 1 in (matrix.stride(-1), matrix.stride(-2)) else [rows, columns]
    return [int(size) for size in sides if _known(size)]


def _features(node: fx.Node) -> tuple[list[list[int]], list[list[int]]]:
    """How many features each matrix that a call reads has at most, and each that it gives; both sides where known."""
    name = _name(node)
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
