"""Inductor pads no product that will read codes, and every product is one again afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import capture_graphs, count, eager_backend
from tiny import NEAREST_POLICY
from torch import fx, nn
from torch._inductor.fx_passes import pad_mm

from metis_compile import CapturedGraph, Policy
from metis_compile.compat import inductor_config
from metis_compile.ops.quantization import DEQUANTIZE
from metis_compile.passes.joint import hide_from_pad_mm
from metis_compile.passes.joint.hide_from_pad_mm import HIDDEN, hide, restore

aten = torch.ops.aten


def captured(policy: Policy | str) -> CapturedGraph:
    """Of a linear whose sizes are odd, where Inductor finds that padding pays for every product."""
    x = torch.randn(19, 36, requires_grad=True)
    with inductor_config.patch(cpu_backend="triton"):
        return capture_graphs(nn.Linear(36, 21, bias=False), x, policy=policy).graphs[0]


@pytest.fixture
def padding_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pad_mm, "should_pad", lambda *_: True)


def pads(graph: CapturedGraph) -> int:
    return sum(count(gm, aten.constant_pad_nd.default) for gm in (graph.forward, graph.backward))


def test_packed_products_are_not_padded(padding_pays: None) -> None:
    graph = captured(NEAREST_POLICY)
    assert pads(graph) == 0
    assert count(graph.forward, aten.mm.default) == 1
    assert count(graph.backward, aten.mm.default) == 2


def test_others_are(padding_pays: None) -> None:
    assert pads(captured("high")) > 0


def test_without_it_they_would_be(padding_pays: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hide_from_pad_mm, "hide", lambda graph: [])
    assert pads(captured(NEAREST_POLICY)) > 0


def test_a_user_s_own_passes_see_products() -> None:
    seen: list[tuple[str, int]] = []

    def pass_for(place: str) -> Any:
        return lambda graph: seen.append((place, len(graph.find_nodes(op="call_function", target=aten.mm.default))))

    places = ("joint_custom_pre_pass", "joint_custom_post_pass")
    backend = eager_backend(NEAREST_POLICY, **{place: pass_for(place) for place in places})
    with inductor_config.patch(cpu_backend="triton"):
        torch.compile(nn.Linear(36, 21, bias=False), backend=backend)(torch.randn(19, 36, requires_grad=True))
    assert seen == [(place, 3) for place in places]


def test_held_products_compute_the_same() -> None:
    joint: Any = (
        capture_graphs(nn.Linear(36, 21), torch.randn(19, 36, requires_grad=True), policy=NEAREST_POLICY)
        .graphs[0]
        .joint_after
    )
    values = [torch.randn(n.meta["val"].shape) for n in joint.graph.find_nodes(op="placeholder")]
    before = [node.target for node in joint.graph.nodes]
    expected = joint(*values)
    with inductor_config.patch(cpu_backend="triton"):
        hidden = hide(joint.graph)
    assert len(hidden) == 3
    assert all(node.target in HIDDEN.values() for node in hidden)
    joint.recompile()
    results = [joint(*values)]
    restore(joint.graph)
    assert [node.target for node in joint.graph.nodes] == before
    joint.recompile()
    results.append(joint(*values))
    for result in results:
        for a, b in zip(result, expected, strict=True):
            assert a is b is None or torch.equal(a, b)


def test_nothing_is_held_where_values_are_multiplied() -> None:
    joint: Any = capture_graphs(nn.Linear(36, 21), torch.randn(19, 36), policy=NEAREST_POLICY).graphs[0].joint_after
    assert isinstance(joint, fx.GraphModule)
    assert count(joint, DEQUANTIZE) > 0
    assert hide(joint.graph) == []


def test_a_graph_that_inductor_has_not_put_in_order_yet() -> None:
    """A product times zero is folded to zeros of a size that is computed behind them."""
    added, weight = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(1, 24, 16))
    policy = Policy.from_toml(
        "[recipe.r]\nweight = 'high'\nactivation = { format = 'fp8', split = 'mean' }\ngradient = 'mxfp8'\n"
        "[[rule]]\nrecipe = 'r'\n"
    )

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(added, x[1:].unsqueeze(0), weight, alpha=0, beta=-0.5)

    run = torch.compile(scaled, backend=eager_backend(policy), dynamic=True)
    for rows in (17, 18):
        result = run(torch.randn(rows, 24))
        torch.testing.assert_close(result, (-0.5 * added).expand(1, rows - 1, 16))
        result.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()
