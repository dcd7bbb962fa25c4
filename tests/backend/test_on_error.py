"""What an internal error at one product does: it names the product, or leaves it alone where the options say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import SAME_DRAWS, ByHand, assert_same, gradients, uniform
from graphs import eager_backend, sites_of
from tiny import MLP, NEAREST, NEAREST_POLICY
from torch._dynamo.exc import BackendCompilerFailed

import metis_compile
from metis_compile.inspection.explain import explained_site
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.passes.graph.sites import Operand, Site
from metis_compile.passes.joint.rewrite import Rewriter
from metis_compile.passes.joint.site_errors import SiteError

FAULT = "no room for a second operand"


@pytest.fixture
def _faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second operand of each product of `down` can't be quantized; the first one has been by then."""
    quantize = Rewriter._quantize

    def fail(self: Rewriter, site: Site, operand: Operand, *args: Any) -> Any:
        if site.module == "down" and operand is site.rhs:
            raise ArithmeticError(FAULT)
        return quantize(self, site, operand, *args)

    monkeypatch.setattr(Rewriter, "_quantize", fail)


@pytest.mark.usefixtures("_faulty")
def test_an_error_names_the_site() -> None:
    run = torch.compile(MLP(), backend="metis", options={"policy": NEAREST_POLICY})
    with (
        metis_compile.capture(),  # past the caches, which may have the graph, so that no pass would run
        pytest.raises(BackendCompilerFailed, match=r"the fprop of linear in down \(tiny.py:\d+\)") as raised,
    ):
        run(torch.randn(16, 32))
    error = raised.value.inner_exception
    assert isinstance(error, SiteError)
    assert isinstance(error.__cause__, ArithmeticError)
    assert f"ArithmeticError: {FAULT}" in str(error)
    assert '"on_error": "leave"' in str(error)


@pytest.mark.usefixtures("_faulty")
def test_an_error_can_leave_its_site_alone() -> None:
    """The graph is then the one of a policy that leaves `down` high: nothing of the products begun stays in it."""
    model, x = MLP(), torch.randn(24, 32)
    with metis_compile.capture() as captured:
        run = torch.compile(model, backend=eager_backend(NEAREST_POLICY, on_error="leave"))
        loss = run(x).square().mean()
        loss.backward()
    actual = {"loss": loss.detach(), **gradients(model)}

    (graph,) = captured.graphs
    left = [s for s in sites_of(captured) if s.module == "down"]
    assert sorted(s.gemm for s in left) == ["dgrad", "fprop", "wgrad"]
    for site in left:
        row = explained_site(0, site, graph.saved)
        assert row.reason == f"left after an error: ArithmeticError: {FAULT}"
        assert not any("codes" in name for name in row.saved)
        assert all(operand.quantized is None for operand in site.operands)
    assert all(s.reason is None for s in sites_of(captured) if s.module == "up")
    made = [n.name for n in graph.joint_after.graph.nodes if n.target in (QUANTIZE, DEQUANTIZE)]
    assert len(made) == 2 * 4, "x and the weight forward, x and the gradient backward"
    assert not any("down" in name for name in made)

    with ByHand(uniform(NEAREST), skip=lambda weight: weight is model.down.weight):
        loss = model(x).square().mean()
        loss.backward()
    assert_same(actual, {"loss": loss.detach(), **gradients(model)}, SAME_DRAWS)


@pytest.mark.usefixtures("_faulty")
def test_a_model_with_a_site_left_after_an_error_trains() -> None:
    model, x, y = MLP(), torch.randn(64, 32), torch.randn(64, 32)
    run = torch.compile(model, backend=eager_backend("nvfp4", on_error="leave"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = (run(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
