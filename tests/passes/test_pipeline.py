"""The driver of the passes, on graphs of a few nodes: order, log, verification; and that a new pass is a line."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from metis_compile import Policy, capture
from metis_compile.options import Config
from metis_compile.passes import pipeline
from metis_compile.passes.context import PassContext, PassResult, run_passes
from metis_compile.passes.verify import GraphError

aten = torch.ops.aten
PAGE = (Path(__file__).parents[2] / "docs" / "how-it-works.md").read_text()


def small_graph() -> fx.Graph:
    """x + y, relu, times two: five nodes and the output."""
    traced = make_fx(lambda x, y: (torch.relu(x + y) * 2,), tracing_mode="fake")(torch.randn(4), torch.randn(4))
    return traced.graph


def context_of(graph: fx.Graph, *, verify: bool = True) -> PassContext:
    return PassContext(graph=graph, config=Config(policy=Policy.load("high"), verify=verify))


def drop_relu(context: PassContext) -> PassResult:
    nodes = context.graph.find_nodes(op="call_function", target=aten.relu.default)
    for node in nodes:
        node.replace_all_uses_with(node.args[0])
        context.graph.erase_node(node)
    return PassResult(changed=len(nodes), left=[("add", "no relu")])


def break_metadata(context: PassContext) -> PassResult:
    del context.graph.find_nodes(op="call_function", target=aten.relu.default)[0].meta["val"]
    return PassResult(changed=1)


def test_passes_run_in_order_and_log_what_they_did(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def first(context: PassContext) -> PassResult:
        seen.append("first")
        return PassResult()

    graph = small_graph()
    with caplog.at_level(logging.INFO, logger="metis_compile.passes"):
        run_passes([first, drop_relu], context_of(graph), "joint")
    assert seen == ["first"]
    assert not graph.find_nodes(op="call_function", target=aten.relu.default)
    assert caplog.messages == ["joint first: 0 changed", "joint drop_relu: 1 changed, 1 left; relu 1 -> 0"]


def test_a_graph_is_verified_after_each_pass_if_asked_for() -> None:
    with pytest.raises(GraphError, match="after joint pass break_metadata"):
        run_passes([break_metadata, drop_relu], context_of(small_graph()), "joint")
    run_passes([break_metadata], context_of(small_graph(), verify=False), "joint")


def test_a_graph_is_verified_while_lowering_too() -> None:
    with pytest.raises(GraphError, match="after lowering pass break_metadata"):
        run_passes([break_metadata], context_of(small_graph()), "lowering")


def count_products(context: PassContext) -> PassResult:
    return PassResult(changed=len(context.sites))


def test_a_new_pass_is_a_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from graphs import eager_backend

    monkeypatch.setattr(pipeline, "JOINT", (*pipeline.JOINT, count_products))
    model = torch.compile(nn.Linear(32, 32), backend=eager_backend("nvfp4"))
    with caplog.at_level(logging.INFO, logger="metis_compile.passes"), capture() as captured:
        model(torch.randn(16, 32, requires_grad=True)).sum().backward()
    assert len(captured.graphs[0].sites) == 3
    assert "joint count_products: 3 changed" in caplog.messages


def test_the_documentation_names_every_pass_in_order() -> None:
    passes = [*pipeline.JOINT, *pipeline.BEFORE_INDUCTOR, *pipeline.AFTER_INDUCTOR, *pipeline.LOWERING]
    places = [re.search(rf"`{each.__name__}`", PAGE) for each in passes]
    assert None not in places, [each.__name__ for each, place in zip(passes, places, strict=True) if place is None]
    starts = [place.start() for place in places if place is not None]
    assert starts == sorted(starts)
