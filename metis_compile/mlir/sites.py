"""Where in the model a node of a captured graph comes from, for errors."""

from __future__ import annotations

from torch import fx

from metis_compile.passes.graph.provenance import module_name, op_name, source_line
from metis_compile.passes.record import CapturedGraph


def place_of(node: fx.Node, captured: CapturedGraph, stage: str) -> str:
    """`fprop of linear in up (model.py:7)` for what belongs to a product, else `dropout in mlp (model.py:9), forward`.

    A node of backward that belongs to a linear may be of its dgrad or of its wgrad: `dgrad or wgrad of linear ...`.
    """
    place = f"{op_name(node)} in {module_name(node) or '<model>'} ({source_line(node)})"
    gemms = dict.fromkeys(
        site.gemm
        for site in captured.sites
        if site.seq is not None
        and site.seq == node.meta.get("seq_nr")
        and (site.module, site.op) == (module_name(node), op_name(node))
        and site.in_backward == (stage != "forward")
    )
    return f"{' or '.join(gemms)} of {place}" if gemms else f"{place}, {stage}"
