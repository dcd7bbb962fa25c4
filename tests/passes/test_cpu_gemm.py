"""Thin products on the CPU: taken and added in place, factors in bfloat16, and the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import capture_graphs
from torch import fx, nn
from written_out import Held

from metis_compile import Policy
from metis_compile.compat import bf16_gemm
from metis_compile.kernels.cpu.ops import CPU_CAST, CPU_CAT, CPU_DECODE, CPU_PRODUCT, CPU_THIN_SUM
from metis_compile.ops.buffers import TO_BFLOAT16
from metis_compile.ops.state import LOAD, STORE, handle_of
from metis_compile.options import Config
from metis_compile.passes.context import PassContext, run_passes
from metis_compile.passes.lowering import cpu_gemm
from metis_compile.passes.pipeline import LOWERING

aten = torch.ops.aten
WITHOUT = "this CPU has no bfloat16 instructions, or torch no GEMM"
# a chain, so that factors are joined, and gradients split beside it
CHAIN = """
[recipe.chain]
weight     = "nvfp4"
activation = { format = "nvfp4", split = ["mean", { kind = "spectral", rank = 3, compensate = true }] }
gradient   = { format = "nvfp4", rounding = "stochastic", split = { kind = "spectral", rank = 3 } }
[[rule]]
recipe = "chain"
"""


def graphs(preset: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Forward and backward of one linear of 128 tokens, 96 -> 80."""
    x = torch.randn(128, 96, requires_grad=True)
    policy = Policy.from_toml(CHAIN) if preset == "chain" else preset
    captured = capture_graphs(nn.Linear(96, 80), x, policy=policy).graphs[0]
    assert captured.forward is not None
    assert captured.backward is not None
    return captured.forward, captured.backward


def lowered(gm: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    made = fx.GraphModule(gm, graph)
    run_passes(
        LOWERING, PassContext(graph=made.graph, config=Config(policy=Policy.load("high"), verify=True)), "lowering"
    )
    made.recompile()
    return made


def calls(gm: fx.GraphModule, target: object) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.target is target]


@pytest.mark.usefixtures("has_bfloat16")
@pytest.mark.parametrize("preset", ["metis", "chain"])
def test_splits_take_theirs_in_one_pass(preset: str) -> None:
    for gm in graphs(preset):
        thin = lowered(gm)
        (residual,) = [n for n in calls(thin, CPU_THIN_SUM) if n.meta["val"].shape[1] > 20]
        assert residual.args[3] == -1.0
        assert not [n for n in calls(thin, aten.mm.default) if n.meta["val"].shape == residual.meta["val"].shape]


@pytest.fixture(params=["with bfloat16 instructions", "without"])
def has_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether graphs are lowered for a CPU that has these; the rest of the tests are for the CPU that is there."""
    there = request.param != "without"
    monkeypatch.setattr(cpu_gemm, "bf16_gemm", lambda: there or None)
    return there


@pytest.fixture
def runs(has_bfloat16: bool) -> None:
    """Skips what would be run here, and can't be."""
    if has_bfloat16 and bf16_gemm() is None:
        pytest.skip(WITHOUT)


def test_products_stay_in_float32_without_bfloat16_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_gemm, "bf16_gemm", lambda: None)
    for gm in graphs("metis"):
        made = lowered(gm)
        assert not calls(made, CPU_PRODUCT)
        large = [n for n in calls(gm, aten.mm.default) + calls(gm, aten.addmm.default) if not n.meta.get("metis_tail")]
        assert large
        assert len(calls(made, aten.mm.default) + calls(made, aten.addmm.default)) >= len(large)
        for node in calls(made, aten.mm.default) + calls(made, aten.addmm.default):
            assert node.meta["val"].dtype == torch.float32


def test_products_add_their_tails_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_gemm, "bf16_gemm", lambda: True)  # the graph is read, not run
    forward, backward = (lowered(gm) for gm in graphs("metis"))
    fprop, thin = sorted(calls(forward, CPU_PRODUCT), key=lambda n: -len(n.args[3]))
    assert not thin.args[3]
    assert thin.args[5].target is aten.addmm.default
    assert thin.args[6] == -1, "what is taken from Q(R) to compensate"
    assert len(fprop.args[3]) == 2
    assert list(fprop.args[4].users) == [fprop], "the bias"
    tails = sorted(len(n.args[3]) // 2 for n in calls(backward, CPU_PRODUCT))
    assert tails == [0, 1, 1, 2], "two factors; one with what was saved, and their own; dgrad; wgrad"
    assert len(calls(backward, CPU_DECODE)) == 1, "decoded once for the large product and the thin one"


@pytest.mark.parametrize("preset", ["metis", "chain", "best", "averis"])
def test_factors_stay_in_bfloat16_where_kernels_read_them(preset: str, has_bfloat16: bool) -> None:
    for gm in map(lowered, graphs(preset)):
        assert not calls(gm, TO_BFLOAT16)
        read = [factor for product in calls(gm, CPU_PRODUCT) for factor in product.args[3]]
        read += [factor for thin in calls(gm, CPU_THIN_SUM) for factor in thin.args[1:3]]
        assert all(n.meta["val"].dtype == torch.bfloat16 or is_sum(made(n)) for n in read)
        # without these instructions only residuals read factors, and what is left of a mean has no product
        assert read or preset == "averis" or not has_bfloat16


def made(node: fx.Node) -> fx.Node:
    """What `node` is a view of."""
    return made(node.args[0]) if node.target in (aten.permute.default, aten.unsqueeze.default) else node


def is_sum(node: fx.Node) -> bool:
    """Whether `node` is computed in this graph, in float32, or holds what is."""
    if node.target is CPU_CAT:
        return any(is_sum(made(part)) for part in node.args[0])
    return node.target in (aten.mm.default, aten.addmm.default, aten.sum.dim_IntList, CPU_PRODUCT)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("preset", ["metis", "chain", "best", "metis-paper", "averis"])
def test_the_same_results(preset: str) -> None:
    for gm in graphs(preset):
        wanted = [(n, n.meta["val"]) for n in gm.graph.find_nodes(op="placeholder")]
        inputs = [None if is_handle(n) else torch.randn(v.shape).abs().to(v.dtype) for n, v in wanted]
        results = []
        for module in (gm, lowered(gm)):
            torch.manual_seed(0)
            handle = handle_of(Held(gm, torch.Generator().manual_seed(1)))
            results.append(module(*(handle if i is None else i.clone() for i in inputs)))
        for a, b in zip(*results, strict=True):
            if a is not None:
                # one element in a block may round the other way, where its residual came out a bit different
                error = float((a.double() - b.double()).norm() / a.double().norm().clamp(min=1e-30))
                assert error < 2e-2, preset


def is_handle(node: Any) -> bool:
    """Whether an input stands for what lives across steps."""
    return any(user.target in (LOAD, STORE) for user in node.users)


def test_a_whole_activation_in_bfloat16_is_no_factor() -> None:
    """Its cast is Inductor's to fuse."""
    x = torch.randn(128, 96, dtype=torch.bfloat16, requires_grad=True)
    captured = capture_graphs(nn.Linear(96, 80, dtype=torch.bfloat16), x, policy="metis").graphs[0]
    assert captured.forward is not None
    casts = calls(lowered(captured.forward), CPU_CAST)
    assert casts
    assert all(min(n.meta["val"].shape) < 20 for n in casts)
