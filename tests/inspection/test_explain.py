"""explain and capture: what they show, and that looking changes nothing."""

from __future__ import annotations

import json
import logging
import random

import pytest
import torch
from tiny import MLP, NEAREST_POLICY, Attention
from torch import Tensor, nn

import metis_compile
from metis_compile import Policy, PolicyError


class Model(nn.Module):
    """A block with attention, dropout and batch statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), MLP(dropout=0.1)
        self.norm = nn.BatchNorm1d(32)
        self.lm_head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return self.lm_head(self.norm((x + self.mlp(x)).flatten(0, 1)))


@pytest.fixture(scope="module")
def explanation() -> metis_compile.Explanation:
    torch.manual_seed(0)
    return metis_compile.explain(Model(), torch.randn(2, 16, 32), policy="nvfp4")


def test_one_row_per_product(explanation: metis_compile.Explanation) -> None:
    rows = {(s.module, s.gemm): s for s in explanation.sites if s.op == "linear"}
    up = rows["mlp.up", "fprop"]
    assert (up.m, up.n, up.k, up.batch) == (32, 48, 32, 1)
    assert up.treatment == {"activation": "nvfp4 1x16 nearest", "weight": "nvfp4 1x16 nearest"}
    assert up.source.startswith("tiny.py:")
    assert up.weights == ("mlp.up.weight",)
    assert up.reason is None
    assert up.recipe == "nvfp4"
    assert up.rule.startswith("nvfp4")
    assert rows["lm_head", "wgrad"].reason.startswith("high: ")
    attention = [s for s in explanation.sites if s.op == "matmul"]
    assert len(attention) == 6
    assert all("has_weight=false" in str(s.reason) for s in attention)


def test_saved_bytes_per_product(explanation: metis_compile.Explanation) -> None:
    rows = {(s.module, s.gemm): s for s in explanation.sites if s.op == "linear"}
    assert rows["mlp.up", "wgrad"].saved_bytes == 32 * 32 * 4.5 / 8 + 4
    assert len(rows["mlp.up", "wgrad"].saved) == 3
    assert rows["attention.q", "wgrad"].saved == rows["attention.v", "wgrad"].saved, "one packed input for q, k, v"
    assert rows["mlp.up", "fprop"].saved_bytes == 0
    assert explanation.saved_bytes > rows["mlp.up", "wgrad"].saved_bytes


def test_prints_as_a_table_and_as_json(explanation: metis_compile.Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    text = str(explanation)
    for part in ("attention.q", "32 x 48 x 32", "nvfp4 1x16 stochastic round_up", "lm_head", "saved for backward"):
        assert part in text
    assert json.loads(json.dumps(explanation.to_dict()))["sites"][0]["gemm"] == "fprop"


def test_one_site_by_name(explanation: metis_compile.Explanation) -> None:
    assert explanation.site("mlp.up").treatment["weight"] == "nvfp4 1x16 nearest"
    assert explanation.site("mlp.down", "dgrad").treatment["gradient"] == "nvfp4 1x16 stochastic round_up"
    with pytest.raises(LookupError, match=r"no product for 'mlp.upp' fprop; there are .*mlp\.up fprop linear"):
        explanation.site("mlp.upp")
    with pytest.raises(LookupError, match="2 products for 'attention' fprop"):
        explanation.site("attention")


def test_unused_rules_are_reported() -> None:
    policy = Policy.from_toml('extends = "nvfp4"\n[[rule]]\nmodule = "layers.*"\nrecipe = "fp8"\n', name="run.toml")
    found = metis_compile.explain(MLP(), torch.randn(16, 32), policy=policy)
    assert any("run.toml rule 1" in rule and "layers.*" in rule for rule in found.unused_rules)
    assert "matched nothing: run.toml rule 1" in str(found)


def test_leaves_model_gradients_and_random_state_alone() -> None:
    model = Model()
    x = torch.randn(2, 16, 32)
    model(x).sum().backward()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    random.seed(3)
    states = torch.get_rng_state(), random.getstate()
    metis_compile.explain(model, x, policy="nvfp4")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters())
    assert model.training


def test_explaining_twice_and_another_policy() -> None:
    model, x = MLP(), torch.randn(16, 32)
    for policy, treatment in (("nvfp4", "nvfp4 1x16 nearest"), ("mxfp8", "mxfp8 1x32 nearest floor")) * 2:
        site = metis_compile.explain(model, x, policy=policy).sites[0]
        assert site.treatment["weight"] == treatment


def test_a_compiled_model_can_be_explained() -> None:
    model, x = MLP(), torch.randn(16, 32)
    compiled = torch.compile(model, backend="metis", options={"policy": NEAREST_POLICY})
    assert len(metis_compile.explain(compiled, x, policy="nvfp4").sites) == 5


def test_no_grad_and_dynamic_sizes() -> None:
    x = torch.randn(4, 10, 32)
    with torch.no_grad():
        assert {s.gemm for s in metis_compile.explain(MLP(), x, policy="nvfp4").sites} == {"fprop"}
    torch._dynamo.mark_dynamic(x, 1)
    site = metis_compile.explain(MLP(), x, policy="nvfp4").sites[0]
    assert isinstance(site.m, str)
    assert site.n == 48


def test_graph_breaks_show_every_graph() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(x)

    found = metis_compile.explain(Broken(), torch.randn(16, 32), policy="nvfp4")
    assert found.graphs == 2
    assert {s.module for s in found.sites} == {"first", "second"}


def test_a_wrong_policy_is_a_policy_error() -> None:
    with pytest.raises(PolicyError, match="nvfp4"):
        metis_compile.explain(MLP(), torch.randn(16, 32), policy="nvfp44")


def test_capture_shows_each_stage() -> None:
    model, x = MLP(), torch.randn(16, 32, requires_grad=True)
    with metis_compile.capture() as captured:
        torch.compile(model, backend="metis", options={"policy": NEAREST_POLICY})(x).sum().backward()
    (graph,) = captured.graphs
    names = {
        stage: {n.name for n in getattr(graph, stage).graph.nodes} for stage in ("joint_after", "forward", "backward")
    }
    assert "up_weight_codes" in names["joint_after"]
    assert "up_weight_codes" in names["forward"]
    assert "up_activation_codes_wgrad" in names["backward"]
    assert "metis" not in str(graph.joint_before.graph)
    assert captured.saved_bytes == sum(t.nbytes for t in graph.saved if not t.is_parameter)
    assert len(graph.sites) == 6


def test_nothing_is_captured_outside_the_block() -> None:
    with metis_compile.capture() as captured:
        pass
    torch.compile(MLP(), backend="metis")(torch.randn(16, 32))
    assert captured.graphs == []


def test_graphs_are_not_printed_where_no_trace_is_asked_for() -> None:
    """In tests neither: see conftest.py."""
    metis_compile.explain(MLP(), torch.randn(16, 32), policy="nvfp4")
    assert logging.getLogger("torch.__trace").handlers == []


def test_logs_through_torch_s_channels(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import subprocess
    import sys

    code = (
        "import torch\n"
        "m = torch.nn.Linear(16, 16)\n"
        "import metis_compile\n"
        "metis_compile.explain(m, torch.randn(16, 16), policy='nvfp4')\n"
    )
    environment = {**os.environ, "TORCH_LOGS": "+metis_compile", "TORCH_TRACE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "joint rewrite: 2 changed" in done.stderr
    assert "metis.quantize" in done.stderr
    trace = "".join(p.read_text() for p in tmp_path.iterdir())  # type: ignore[attr-defined]
    assert "metis_joint_before" in trace
    assert "metis_joint_after" in trace
