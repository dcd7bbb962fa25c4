"""Whether it is on: the summary of a compiled model, its line of log, and the one warning."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from graphs import eager_backend
from tiny import MLP, Attention, Tied, Twice
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import metis_compile
from metis_compile import Policy


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp, self.lm_head = Attention(), MLP(), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.mlp(x + self.attention(x)))


def compiled(policy: Policy | str, model: nn.Module, x: Tensor) -> nn.Module:
    result = torch.compile(model, backend=eager_backend(policy))
    result(x)
    return result


def test_what_is_on(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Model(), torch.randn(2, 16, 32)
    with caplog.at_level(logging.INFO, "metis_compile"):
        found = metis_compile.summary(compiled("nvfp4", model, x))
    assert found == metis_compile.summary(model)
    assert (found.policy, found.quantized_linears, found.linears, found.high) == ("nvfp4.toml", 6, 7, ("lm_head",))
    assert found.unruled == {}
    assert json.loads(json.dumps(found.to_dict()))["quantized_linears"] == 6
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("metis: policy")]
    assert lines == [f"metis: {found}"]
    assert "6 of 7 linears; of matmul FLOPs 80." in lines[0]
    assert lines[0].endswith("% in NVFP4; lm_head high; saved for backward -35 %")


@pytest.mark.parametrize("policy", ["nvfp4", "best", "high"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [Model, MLP, Twice, lambda: Twice(reentrant=False), Tied])
def test_what_is_saved_is_what_explain_finds(make: Callable[[], nn.Module], dtype: torch.dtype, policy: str) -> None:
    """Counted while it compiles, without partitioning the plain graph, which explain does."""
    model = make().to(dtype)
    x = torch.randint(0, 32, (2, 64)) if isinstance(model, Tied) else torch.randn(2, 64, 32, dtype=dtype)
    explained = metis_compile.explain(model, x, policy=policy)
    found = metis_compile.summary(compiled(policy, model, x))
    assert (found.saved_bytes, found.plain_saved_bytes) == (explained.saved_bytes, explained.plain_saved_bytes)
    assert found.saved_bytes > 0


def test_a_scaled_product_with_tails_is_saved_as_the_plain_one() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.bias = nn.Parameter(torch.randn(32, 48)), nn.Parameter(torch.randn(48))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.up, alpha=0.5).sigmoid()

    model, x = Scaled(), torch.randn(64, 32)
    explained = metis_compile.explain(model, x, policy="best")
    found = metis_compile.summary(compiled("best", model, x))
    assert (found.saved_bytes, found.plain_saved_bytes) == (explained.saved_bytes, explained.plain_saved_bytes)


def test_operands_that_left_the_graph_unquantized_are_nothing_that_is_saved() -> None:
    """A matrix that was made of a batch of one, for a product that a rule then leaves high."""
    weight, added = nn.Parameter(torch.randn(1, 24, 33)), nn.Parameter(torch.randn(33))
    text = "[recipe.r]\nweight = 'high'\nactivation = 'nvfp4'\ngradient = 'high'\n[[rule]]\nrecipe = 'high'\n"

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.added = weight, added

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight / self.weight.norm(dim=-1, keepdim=True)
            return torch.baddbmm(self.added, x.flatten(0, -2)[None], weight, alpha=-2.0)

    run = torch.compile(Joined(), backend=eager_backend(Policy.from_toml(text)))
    run(torch.randn(4, 9, 24)).sum().backward()
    assert weight.grad is not None


def test_nothing_is_said_of_a_forward_without_gradients() -> None:
    with torch.no_grad():
        found = metis_compile.summary(compiled("nvfp4", Model(), torch.randn(2, 16, 32)))
    assert (found.saved_bytes, found.plain_saved_bytes) == (0, 0)
    assert "saved" not in str(found)


def test_flops_are_those_that_torch_counts() -> None:
    model, x = Model(), torch.randn(2, 16, 32)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert sum(metis_compile.summary(compiled("nvfp4", model, x)).flops.values()) == counter.get_total_flops()
    sites = metis_compile.explain(model, x, policy="nvfp4").sites
    assert sum(site.flops or 0 for site in sites) == counter.get_total_flops()


def test_a_policy_without_a_rule_for_most_of_it_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy.from_toml('[[rule]]\nmodule = "lm_head"\nrecipe = "fp8"\n', name="few.toml")
    model = Model()
    for rows in (16, 32):
        compiled(policy, model, torch.randn(2, rows, 32))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "few.toml leaves " in warning
    assert "though no rule says so; mostly: high: no rule of few.toml matched (attention.q, attention.k" in warning


@pytest.mark.parametrize("policy", ["high", "nvfp4"])
def test_what_a_rule_leaves_is_no_warning(policy: str, caplog: pytest.LogCaptureFixture) -> None:
    compiled(policy, Model(), torch.randn(2, 16, 32))
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_a_dtype_that_is_not_quantized_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    compiled("nvfp4", MLP().double(), torch.randn(16, 32, dtype=torch.float64))
    assert "mostly: dtype float64" in caplog.text


def test_a_model_in_parts_and_another_shape() -> None:
    model = nn.Sequential(MLP(), MLP())
    for part in model:
        part.compile(backend=eager_backend("nvfp4"))
    model(torch.randn(16, 32))
    assert metis_compile.summary(model).linears == 4
    torch.compiler.reset()
    whole = compiled("nvfp4", MLP(), torch.randn(16, 32))
    whole(torch.randn(48, 32))
    assert len(metis_compile.summary(whole).products) == 5


def test_explaining_and_resetting_leave_no_summary() -> None:
    model, x = MLP(), torch.randn(16, 32)
    metis_compile.explain(model, x, policy="nvfp4")
    with pytest.raises(LookupError, match="call it first"):
        metis_compile.summary(model)
    compiled("nvfp4", model, x)
    torch.compiler.reset()
    with pytest.raises(LookupError, match="call it first"):
        metis_compile.summary(model)
    with pytest.raises(TypeError, match=r"is of an nn\.Module, got function"):
        metis_compile.summary(lambda x: x)  # type: ignore[arg-type]


def test_on_a_warm_cache(tmp_path: Path) -> None:
    code = (
        "import json, torch, metis_compile\n"
        "from torch._dynamo.utils import counters\n"
        "m = torch.compile(torch.nn.Linear(16, 16), backend='metis', options={'policy': 'nvfp4'})\n"
        "m(torch.randn(16, 16)).sum().backward()\n"
        "print(json.dumps([counters['aot_autograd']['autograd_cache_hit'], metis_compile.summary(m).to_dict()]))\n"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "METIS_VERIFY": "0"}

    def run() -> tuple[int, dict[str, int]]:
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        hits, found = json.loads(done.stdout.splitlines()[-1])
        return hits, found

    (cold, first), (warm, second) = run(), run()
    assert (cold, warm) == (0, 1)
    assert first == second
    assert 0 < second["saved_bytes"] < second["plain_saved_bytes"] == 16 * 16 * 4
