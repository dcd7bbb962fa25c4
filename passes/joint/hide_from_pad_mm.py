"""Keep the patterns that Inductor knows for products off those that will read codes, from our joint pass to its end.

One pads the operands of products on a GPU to multiples of four elements, if that makes the product of float32 matrices
faster: what lies in between then are pads, and codes would be decoded to be padded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from metis_compile.compat import stable_topological_sort
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.products import PRODUCTS
from metis_compile.passes.lowering.packed_gemm import packed_operands


def _stand_in(target: Any) -> Callable[..., Any]:
    def hidden(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    hidden.__name__ = f"held_{target._schema.name.removeprefix('aten::')}"
    return hidden


HIDDEN: dict[Any, Callable[..., Any]] = {target: _stand_in(target) for target in PRODUCTS}
RESTORED: dict[Any, Any] = {hidden: target for target, hidden in HIDDEN.items()}


def hide_from_pad_mm(context: PassContext) -> PassResult:
    """Hides the products that `pack_gemms` will take from Inductor's own joint passes."""
    return PassResult(changed=len(hide(context.graph)))


def restore_products(context: PassContext) -> PassResult:
    """Makes them products again, of a graph in order: Inductor may fold to a size that is only computed further on."""
    stable_topological_sort(context.graph)
    return PassResult(changed=restore(context.graph))


def hide(graph: fx.Graph) -> list[fx.Node]:
    """Gives the products that `pack_gemms` will take a target that no pattern knows; returns them."""
    nodes = [node for node in graph.nodes if node.target in HIDDEN and packed_operands(node) is not None]
    for node in nodes:
        node.target = HIDDEN[node.target]
    return nodes


def restore(graph: fx.Graph) -> int:
    """Gives hidden products their own target again; returns how many there were."""
    nodes = [node for node in graph.nodes if node.op == "call_function" and node.target in RESTORED]
    for node in nodes:
        node.target = RESTORED[node.target]
    return len(nodes)
