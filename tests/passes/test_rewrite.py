"""The rewritten joint graph: operands quantized once, and the bits of `metis_compile.quantize`."""

from __future__ import annotations

import pytest
import torch
from graphs import capture_graphs, count, sites_of
from tiny import MLP, NEAREST_POLICY, STOCHASTIC_POLICY, Attention
from torch import fx, nn

import metis_compile
from metis_compile import Policy
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.ops.residual import RESIDUAL
from metis_compile.passes.verify import GraphError, verify


def quantizations(captured: metis_compile.Captured) -> list[fx.Node]:
    graph = captured.graphs[0].joint_after
    assert graph is not None
    return [n for n in graph.graph.nodes if n.target is QUANTIZE]


def test_shared_operands_are_quantized_once() -> None:
    captured = capture_graphs(Attention(), torch.randn(2, 16, 32, requires_grad=True), policy=NEAREST_POLICY)
    # q, k, v share X in both orientations; the output projection has its own; four weights and four gradients, twice
    assert len(quantizations(captured)) == 2 + 2 + 2 * 4 + 2 * 4
    names = {n.name for n in quantizations(captured)}
    assert "q_activation_quantized" in names
    assert not {"k_activation_quantized", "v_activation_quantized"} & names


def test_both_backward_products_share_an_orientation_free_gradient() -> None:
    policy = Policy.from_toml(
        """
        [recipe.square]
        weight = { format = "nvfp4", block = "16x16" }
        activation = { format = "nvfp4" }
        gradient = { format = "fp8", block = "128x128" }
        [[rule]]
        recipe = "square"
        """
    )
    captured = capture_graphs(nn.Linear(32, 32), torch.randn(16, 32, requires_grad=True), policy=policy)
    roles = sorted(n.name.split("_")[1] for n in quantizations(captured))
    assert roles == ["activation", "activation", "gradient", "weight"]


def test_blocks_run_along_the_contraction_axis() -> None:
    captured = capture_graphs(nn.Linear(32, 64), torch.randn(16, 32, requires_grad=True), policy=NEAREST_POLICY)
    axes = {(s.gemm, o.role): o.quantized.args[2] for s in sites_of(captured) for o in s.operands}
    assert axes == {
        ("fprop", "activation"): 1,
        ("fprop", "weight"): 1,
        ("dgrad", "gradient"): 1,
        ("dgrad", "weight"): 0,
        ("wgrad", "gradient"): 0,
        ("wgrad", "activation"): 0,
    }


@pytest.mark.parametrize("preset", ["fp8", "mxfp8", "mxfp4", "nvfp4"])
def test_the_graph_runs_to_the_bits_of_quantize(preset: str) -> None:
    """Forward and weight gradient of the captured graph, with the operands quantized by the public function."""
    model, x = nn.Linear(32, 48, bias=False), torch.randn(16, 32)
    captured = capture_graphs(model, x, policy=preset)
    joint = captured.graphs[0].joint_after
    treatment = {(s.gemm, o.role): o.decision.treatment for s in sites_of(captured) for o in s.operands}

    def q(value: torch.Tensor, gemm: str, role: str, axis: int) -> torch.Tensor:
        t = treatment[gemm, role]
        return metis_compile.quantize(value, t.format, axis, t.block, scale_mode=t.scale_mode).dequantize()

    w = model.weight.detach()
    tangent = torch.ones(16, 48)
    inputs = {"primals": [w, x] if joint.graph.find_nodes(op="placeholder")[0].meta["val"].shape == w.shape else [x, w]}
    y, *grads = joint(*inputs["primals"], tangent)
    torch.testing.assert_close(y, q(x, "fprop", "activation", 1) @ q(w, "fprop", "weight", 1).T, rtol=0, atol=1e-5)
    (grad,) = [g for g in grads if g is not None and g.shape == w.shape]
    if treatment["wgrad", "gradient"].rounding == "nearest":
        expected = q(tangent, "wgrad", "gradient", 0).T @ q(x, "wgrad", "activation", 0)
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-5)


def test_stochastic_streams_differ() -> None:
    captured = capture_graphs(MLP(), torch.randn(16, 32, requires_grad=True), policy=STOCHASTIC_POLICY)
    streams = [n.args[4] for n in quantizations(captured) if len(n.args) > 3]
    assert len(streams) == len(set(streams)) == 4
    assert len({n.args[3] for n in quantizations(captured) if len(n.args) > 3}) == 1, "one seed per graph"


class TestVerify:
    """Each rule of the verifier on a graph that breaks it, and nothing to say of a graph that breaks none."""

    def graph(self) -> fx.GraphModule:
        captured = capture_graphs(nn.Linear(32, 32), torch.randn(16, 32, requires_grad=True), policy=STOCHASTIC_POLICY)
        graph = captured.graphs[0].joint_after
        assert graph is not None
        verify(graph.graph, "nothing")
        return graph

    def find(self, gm: fx.GraphModule, target: object, number: int = 0) -> fx.Node:
        return [n for n in gm.graph.nodes if n.target is target][number]

    def test_metadata(self) -> None:
        gm = self.graph()
        del self.find(gm, DEQUANTIZE).meta["val"]
        with pytest.raises(GraphError, match=r"after rewrite: .*_dequantized: no `val`"):
            verify(gm.graph, "rewrite")

    def test_a_call_that_returns_nothing_needs_no_metadata(self) -> None:
        def checked(x: torch.Tensor) -> torch.Tensor:
            torch._assert_async(x.isfinite().all(), "finite")
            return x @ x

        captured = capture_graphs(checked, torch.randn(16, 16, requires_grad=True), policy=STOCHASTIC_POLICY)
        assert count(captured.graphs[0].joint_after, torch.ops.aten._assert_async.msg) == 1

    def test_axis_rule(self) -> None:
        gm = self.graph()
        node = self.find(gm, torch.ops.aten.mm.default)
        node.args = (node.args[0], self.find(gm, DEQUANTIZE, 1))
        with pytest.raises(GraphError, match=r"contracts over axis 0 of .*, which is blocked along axis 1"):
            verify(gm.graph, "rewrite")

    def test_a_residual_of_what_does_not_fit(self) -> None:
        x = torch.randn(16, 32, requires_grad=True)
        captured = capture_graphs(nn.Linear(32, 48), x, policy="averis")
        gm = captured.graphs[0].joint_after
        assert gm is not None
        node = self.find(gm, RESIDUAL)
        (mean,) = node.args[1:]
        node.args = (node.args[0], node.args[0])
        with pytest.raises(GraphError, match=r"after nothing: .*mean must have shape \[1, 32\], got \[16, 32\]"):
            verify(gm.graph, "nothing")
        node.args = (node.args[0], mean)
        node.meta["val"] = node.meta["val"].T
        with pytest.raises(GraphError, match=r"leaves torch.float32 \[32, 16\] of \[16, 32\]"):
            verify(gm.graph, "nothing")

    def test_view_across_blocks(self) -> None:
        gm = self.graph()
        dequantized = self.find(gm, DEQUANTIZE)
        with gm.graph.inserting_after(dequantized):
            view = gm.graph.call_function(torch.ops.aten.view.default, (dequantized, [32, 16]))
            view.meta["val"] = dequantized.meta["val"].view(32, 16)
        with gm.graph.inserting_after(view):
            back = gm.graph.call_function(torch.ops.aten.view.default, (view, [16, 32]))
            back.meta["val"] = dequantized.meta["val"]
        dequantized.replace_all_uses_with(back, delete_user_cb=lambda user: user is not view)
        with pytest.raises(GraphError, match="across the blocks"):
            verify(gm.graph, "rewrite")

    def test_decoding_with_another_spec(self) -> None:
        gm = self.graph()
        node = self.find(gm, DEQUANTIZE)
        node.args = (node.args[0], "nvfp4 16x16 nearest", *node.args[2:])
        with pytest.raises(GraphError, match="decodes as 'nvfp4 16x16 nearest'"):
            verify(gm.graph, "rewrite")

    def test_seed(self) -> None:
        gm = self.graph()
        node = next(n for n in gm.graph.nodes if n.target is QUANTIZE and "stochastic" in n.args[1])
        node.args = node.args[:3]
        with pytest.raises(GraphError, match="rounds stochastic without a seed"):
            verify(gm.graph, "rewrite")

    def test_quantizing_twice(self) -> None:
        gm = self.graph()
        first, last = self.find(gm, DEQUANTIZE), self.find(gm, QUANTIZE, -1)
        last.args = (first, *last.args[1:])
        with pytest.raises(GraphError, match="which is quantized already"):
            verify(gm.graph, "rewrite")

    def test_mixed_dtypes(self) -> None:
        gm = self.graph()
        node = self.find(gm, torch.ops.aten.mm.default)
        node.args[0].meta["val"] = node.args[0].meta["val"].bfloat16()
        with pytest.raises(GraphError, match=r"multiplies torch\.bfloat16 by torch\.float32"):
            verify(gm.graph, "rewrite")


def test_nothing_is_rewritten_under_high() -> None:
    captured = capture_graphs(MLP(), torch.randn(16, 32, requires_grad=True), policy="high")
    assert count(captured.graphs[0].joint_after, QUANTIZE) == 0
    assert all(str(s.reason).startswith("high: high.toml rule") for s in sites_of(captured))
