"""What a graph saves for backward, beside what it would save without quantization, told without a second partition.

Of the tensors that the partitioner saves, those that our passes made (codes, scales, factors of splits) are ours; in
their place the plain graph saves what the operands were before they were quantized, each once, unless it is a
parameter, is saved anyway, or is marked to be computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from metis_compile.compat import aot_output, size_hint
from metis_compile.passes.graph.views import root

if TYPE_CHECKING:
    from metis_compile.passes.graph.sites import Site


class SavedBytes:
    """Looks at one graph as it is compiled: before and after our passes, and at the forward that is cut out of it."""

    def __init__(self) -> None:
        self.counted: tuple[int, int] | None = None  # bytes that are saved, and that the plain graph would save
        self._before: set[str] = set()
        self._ours: set[str] = set()  # names of nodes that our passes made, results of products not counted
        self._replaced: list[tuple[tuple[str, ...], str, int]] = []  # names of parts, what they were, its bytes
        self._free: set[str] = set()  # parameters, and what lives across steps

    def before(self, graph: fx.Graph) -> None:
        self._before = {node.name for node in graph.nodes}

    def after(self, graph: fx.Graph, sites: Sequence[Site], parameters: dict[str, str], state: Sequence[str]) -> None:
        self._free = {*parameters, *state}
        results = {node.name for site in sites for node in (site.node, site.result) if node is not None}
        scaled = tuple(f"{site.node.name}_" for site in sites if site.reason is None and site.result is None)
        for node in graph.nodes:
            names = (node.name, root(node).name) if node.name not in self._before else ()
            if names and not any(n in results or n in self._before or n.startswith(scaled) for n in names):
                self._ours.add(node.name)
        for site in sites:
            for operand in site.operands if site.gemm != "fprop" else ():
                if operand.quantized is None:  # what it was may have left the graph
                    continue
                base = root(operand.base, through_casts=False)
                if base.name not in parameters and not base.meta.get("recompute"):
                    self._replaced.append((operand.kept_as, base.name, _nbytes(base.meta["val"])))

    def forward(self, graph: fx.Graph) -> None:
        """The graph that the partitioner made, or a graph that is no forward, of which nothing is said."""
        (output,) = graph.find_nodes(op="output")
        given: Any = output.args[0]
        pairs = zip(given, output.meta.get("desc") or (), strict=False)
        nodes = [node for node, desc in pairs if isinstance(node, fx.Node) and aot_output(desc)[0] == "saved"]
        values = {node.name: node.meta.get("val") for node in nodes if node.name not in self._free}
        saved = {name: _nbytes(value) for name, value in values.items() if isinstance(value, Tensor)}
        if not saved:
            return
        plain = {name: nbytes for name, nbytes in saved.items() if name not in self._ours}
        for parts, base, nbytes in self._replaced:
            if any(part in saved for part in parts):
                plain.setdefault(base, nbytes)
        self.counted = sum(saved.values()), sum(plain.values())


def _nbytes(value: Tensor) -> int:
    nbytes = value.dtype.itemsize
    for size in value.shape:
        nbytes *= size_hint(size)
    return nbytes
