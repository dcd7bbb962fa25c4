"""Write products that are of matrices in truth as products of matrices: a batch of one, and a batch that is added up.

    bmm(a [1, m, k], b [1, k, n])     ->  unsqueeze(mm(a [m, k], b [k, n]), 0)
    baddbmm(c, a [1, m, k], ...)      ->  unsqueeze(addmm(c, ...), 0)
    addbmm(c, a [b, m, k], b [b, k, n])  ->  addmm(c, a [m, b k], b [b k, n])

einsum makes a batch of one of every product with a weight. Its matrices are found behind the dimensions of one and the
permutations that it adds: as `[rows, columns]` of the tensor that they are rearrangements of, so that the three
products of one einsum, and a linear that reads the same tensor, share what is quantized.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.matrices import Matrix, matrices_of
from metis_compile.passes.graph.products import OPERANDS, SUPPORTED_DTYPES
from metis_compile.passes.graph.views import same, shape_of

__all__ = ["write_as_matrices"]

aten = torch.ops.aten
OF_MATRICES: dict[Any, Any] = {aten.bmm.default: aten.mm.default, aten.baddbmm.default: aten.addmm.default}


def write_as_matrices(context: PassContext) -> PassResult:
    """Replaces these products of the joint graph, where the policy quantizes anything."""
    recipes = context.config.policy.recipes
    if not any(treatment.spec is not None for recipe in recipes for treatment in recipe.treatments):
        return PassResult()
    graph = context.graph
    nodes = [node for node in graph.nodes if _is_of_matrices(node)]
    if nodes:
        writer = _Writer(graph)
        for node in nodes:
            writer.replace(node)
    return PassResult(changed=len(nodes))


def _is_of_matrices(node: fx.Node) -> bool:
    if node.target is not aten.addbmm.default and node.target not in OF_MATRICES:
        return False
    if node.meta["val"].dtype not in SUPPORTED_DTYPES:
        return False
    left: Any = node.args[OPERANDS[node.target][0]]
    return node.target is aten.addbmm.default or same(shape_of(left)[0], 1)


class _Writer:
    def __init__(self, graph: fx.Graph) -> None:
        self.builder = GraphBuilder(graph)
        self._matrices: dict[Any, fx.Node] = {}

    def replace(self, node: fx.Node) -> None:
        operands: list[Any] = [node.args[i] for i in OPERANDS[node.target]]
        with self.builder.at(node, like=node):
            if node.target is aten.addbmm.default:
                result = self.builder.call(
                    aten.addmm.default,
                    (node.args[0], *self._joined(*operands)),
                    node.kwargs,
                    name=f"{node.name}_joined",
                )
            else:
                matrices = [self._matrix(operand) for operand in operands]
                added = [self._row_or_matrix(node.args[0])] if node.target is aten.baddbmm.default else []
                target = OF_MATRICES[node.target]
                product = self.builder.call(target, (*added, *matrices), node.kwargs, name=f"{node.name}_matrix")
                result = self.builder.call(aten.unsqueeze.default, (product, 0))
        node.replace_all_uses_with(result)
        self.builder.graph.erase_node(node)

    def _matrix(self, operand: fx.Node) -> fx.Node:
        """What `operand`, [1, rows, columns], is as a matrix."""
        for found in matrices_of(operand):
            base = self._base(found)
            if base is not None:
                return self.builder.call(aten.permute.default, (base, [1, 0])) if found.transposed else base
        raise AssertionError(f"{operand} has no matrix")  # its own dimensions are one

    def _base(self, found: Matrix) -> fx.Node | None:
        """The tensor as a matrix, once for all that read it; None where its elements don't lie so."""
        source = found.source
        own = shape_of(source)[-2:]
        as_it_is = len(own) == 2 and all(
            same(a, b) for a, b in zip(own, found.shape, strict=True)
        )  # [n, 1] is not [1, n]
        if len(shape_of(source)) == 2 and as_it_is:
            return source
        key = source, tuple(map(str, found.shape))
        if key not in self._matrices:
            if source.meta["val"].is_contiguous():
                self._matrices[key] = self.builder.call(aten.view.default, (source, self._sizes(found)))
            elif as_it_is and len(shape_of(source)) == 3 and same(shape_of(source)[0], 1):
                self._matrices[key] = self.builder.call(aten.squeeze.dim, (source, 0))
        return self._matrices.get(key)

    def _sizes(self, found: Matrix) -> list[Any]:
        """Numbers and nodes. A symbolic size is left open; of two, one is read off the tensor."""
        sizes: list[Any] = [size if isinstance(size, int) else -1 for size in found.shape]
        if sizes == [-1, -1]:
            (dim,) = found.columns[:1]
            sizes[1] = self.builder.size(found.source, dim)
            for dim in found.columns[1:]:
                sizes[1] = self.builder.product(sizes[1], self.builder.size(found.source, dim))
        return sizes

    def _row_or_matrix(self, added: Any) -> fx.Node:
        """What is added to [1, rows, columns], without that dimension."""
        dims = len(shape_of(added))
        return added if dims < 3 else self.builder.call(aten.squeeze.dim, (added, 0))  # type: ignore[no-any-return]

    def _joined(self, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
        """a [b, m, k] as [m, b k], and b [b, k, n] as [b k, n]."""
        a_rows = self.builder.call(aten.permute.default, (a, [1, 0, 2]))
        whole = self.builder.call(aten.clone.default, (a_rows,), {"memory_format": torch.contiguous_format})
        m, n = self.builder.size(a, 1), self.builder.size(b, 2)
        left = self.builder.call(aten.view.default, (whole, [m, -1]))
        if not b.meta["val"].is_contiguous():
            b = self.builder.call(aten.clone.default, (b,), {"memory_format": torch.contiguous_format})
        return left, self.builder.call(aten.view.default, (b, [-1, n]))
