"""What a policy costs: FLOPs as torch counts them, and the predicted step by site."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch
from tiny import MLP, Attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import metis_compile
from metis_compile import Explanation, Policy, explain
from metis_compile.cost_model import Device, DeviceError
from metis_compile.inspection import dry_run
from metis_compile.inspection.repeats import whole
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import build

aten = torch.ops.aten
# a roofline without the start of a kernel, so that sums of small models are of what they calculate and move
PLAIN: dict[str, Any] = {"bandwidth": 1e12, "start": 0.0}
GPU = Device(name="gpu", rates={"float32": 1e12, "bfloat16": 1e13, "fp4": 4e13}, **PLAIN)
CPU = Device(name="cpu", rates={"float32": 1e12, "bfloat16": 2e12}, autocast=False, decodes=True, **PLAIN)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), MLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Deep(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.lm_head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


class Picture(nn.Module):
    """A convolution, and a product that is batched."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 16, 4, stride=4), nn.Parameter(torch.randn(2, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(self.patches(x).flatten(2).mT, self.mix)


def trained(name: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    def make() -> tuple[nn.Module, Tensor]:
        settings = Settings(policy="high", model=name, width=32, layers=2, heads=2, context=16, batch=2, device="cpu")
        return build(settings), torch.zeros(2, 16, dtype=torch.int64)

    return make


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "gpt": trained("gpt"),
    "llama": trained("llama"),
    "blocks": lambda: (Deep(2), torch.randn(2, 16, 32)),
    "picture": lambda: (Picture(), torch.randn(2, 3, 16, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_torch(name: str) -> None:
    model, x = MODELS[name]()
    attention: dict[Any, Any] = {  # torch's counter leaves a CPU's fused attention out
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        out = model(x)
        getattr(out, "logits", out).sum().backward()
    explained = explain(model, x, policy="high")
    assert sum(kernel.flops * times for kernel, times in explained.plain_kernels) == counter.get_total_flops()
    products = [site.cost for site in explained.sites]
    rest = sum(kernel.flops * times for kernel, times in explained.rest)
    assert sum(cost.flops["product"] for cost in products if cost) + rest == counter.get_total_flops()
    predicted = explained.cost("b200")
    assert predicted.ratio == pytest.approx(1.0, abs=1e-12)
    assert explained.saved_bytes == explained.plain_saved_bytes


@pytest.fixture(scope="module")
def model() -> tuple[nn.Module, Tensor]:
    return Deep(5), torch.randn(2, 16, 32)


@pytest.fixture(scope="module")
def explained(model: Any) -> Explanation:
    return explain(*model, policy="best")


def test_sites_and_the_rest_are_the_step(explained: Explanation) -> None:
    predicted = explained.cost(GPU)
    by_site = sum(site.total for site in predicted.sites)
    assert predicted.seconds == pytest.approx(by_site + sum(predicted.rest.values()))
    assert predicted.seconds == pytest.approx(sum(predicted.by_kind().values()))
    assert set(predicted.by_kind()) >= {"product", "quantization", "tails", "bases", "other"}
    assert predicted.ratio == predicted.seconds / predicted.plain_seconds


def test_what_is_shared_is_paid_in_parts(explained: Explanation) -> None:
    sites = {s.site.module: s for s in explained.cost(GPU).sites if s.site.gemm == "fprop"}
    q, k, out = (sites[f"layers.1.attention.{name}"] for name in ("q", "k", "out"))
    assert q.seconds == pytest.approx(k.seconds), "one quantized input for q, k and v"
    assert q.seconds["tails"] < out.seconds["tails"]
    assert q.seconds["bases"] * 3 == pytest.approx(out.seconds["bases"])


def test_what_is_left_high_costs_what_it_did(explained: Explanation) -> None:
    head = next(s for s in explained.cost(GPU).sites if s.site.module == "lm_head")
    assert head.site.reason is not None
    assert head.total == head.plain > 0
    assert not head.too_small


def test_small_products_are_flagged(explained: Explanation) -> None:
    predicted = explained.cost("b200")
    assert all(s.too_small for s in predicted.sites if s.site.reason is None), "32 features"
    assert predicted.ratio > 1


def test_a_device_that_decodes_multiplies_in_bfloat16(explained: Explanation) -> None:
    low = explained.cost(CPU)
    assert (low.baseline, explained.cost(GPU).baseline) == ("float32", "bf16")
    up = next(s for s in low.sites if s.site.module == "layers.1.mlp.up" and s.site.gemm == "fprop")
    assert up.seconds["product"] < up.plain


def test_blocks_looked_at_once_cost_what_all_of_them_do(
    model: Any, explained: Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "cut_repeats", lambda gm, alike: whole(gm))
    all_of_them = explain(*model, policy="best")
    for device in (GPU, CPU):
        once, each = explained.cost(device), all_of_them.cost(device)
        assert once.by_kind() == pytest.approx(each.by_kind(), rel=1e-9)
        assert once.plain == pytest.approx(each.plain, rel=1e-9)
    assert explained.plain_saved_bytes == all_of_them.plain_saved_bytes
    assert [s.cost.flops for s in explained.sites if s.cost] == [s.cost.flops for s in all_of_them.sites if s.cost]


def test_symbols_of_batch_and_sequence() -> None:
    model = Deep(1)
    x = torch.randn(3, 16, 32)
    for dim in (0, 1):
        torch._dynamo.mark_dynamic(x, dim)
    symbolic = explain(model, x, policy="best")
    assert sorted(symbolic.sizes.values()) == [3, 16]
    batch, sequence = sorted(symbolic.sizes, key=lambda name: symbolic.sizes[name])
    up = symbolic.site("layers.0.mlp.up").cost
    assert up is not None
    symbols = {str(s): s for s in sympy.sympify(up.flops["product"]).free_symbols}
    assert sympy.expand(up.flops["product"] - 2 * 32 * 48 * symbols[batch] * symbols[sequence]) == 0
    assert {"product", "quantization", "tails"} <= up.nbytes.keys()
    here, numbers = symbolic.cost(GPU), explain(model, x.detach().clone(), policy="best").cost(GPU)
    assert here.by_kind() == pytest.approx(numbers.by_kind(), rel=0.05)
    more = symbolic.cost(GPU, **{batch: 3000})
    assert more.plain["product"] == pytest.approx(1000 * here.plain["product"], rel=0.3)
    with pytest.raises(ValueError, match="there is no symbolic size 'tokens'; there are"):
        symbolic.cost(GPU, tokens=3)
    with pytest.raises(ValueError, match="whole number of at least 1, got 0"):
        symbolic.cost(GPU, **{batch: 0})


def test_the_table_and_the_total_line(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = str(explain(*model, policy="nvfp4", device="rtx 5090"))
    assert "predicted for rtx5090, forward and backward" in text
    assert "layers.{0..4}.mlp.up" in text.split("predicted for")[1]
    assert "products are too small to gain" in text
    assert "float32 of the model is taken for bfloat16" in text
    last = text.splitlines()[-1]
    assert last.startswith("predicted step ")
    assert "x of bf16: " in last
    full = str(explain(*model, policy="nvfp4", device="b200", full=True))
    assert "layers.3.mlp.up wgrad" in full.split("predicted for")[1]


def test_saved_bytes_beside_the_plain_model(explained: Explanation) -> None:
    assert explained.saved_bytes < explained.plain_saved_bytes
    less = 100 * (explained.saved_bytes / explained.plain_saved_bytes - 1)
    said = f"saved for backward: {less:+.0f} % of {explained.plain_saved_bytes:,} bytes without quantization"
    assert said in str(replace(explained, device=GPU))


def test_as_plain_values(model: Any) -> None:
    values = json.loads(json.dumps(explain(*model, policy="nvfp4", device="b200").to_dict()))
    assert values["cost"]["device"]["name"] == "b200"
    assert values["cost"]["sites"][0].keys() >= {"module", "gemm", "seconds", "plain_seconds", "too_small"}
    assert "cost" not in values["sites"][0]


def test_an_unknown_device_is_said_before_the_model_is_traced() -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("traced")

    with pytest.raises(DeviceError, match="did you mean 'b200'"):
        explain(never, torch.ones(1), device="b20")


def test_gain_in_a_policy_leaves_small_products_high() -> None:
    policy = Policy.from_toml(
        """
        [recipe.low]
        weight = { format = "nvfp4" }
        activation = { format = "nvfp4" }
        gradient = { format = "nvfp4" }
        [[rule]]
        has_weight = true
        when = "gain('b200') > 1.0"
        recipe = "low"
        """,
        name="gain.toml",
    )
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 8192), nn.Linear(8192, 8192))
        x = torch.empty(8192, 64)
    found = metis_compile.explain(model, x, policy=policy)
    assert found.site("0").reason == "high: no rule of gain.toml matched"
    assert found.site("1").reason is None
    torch._dynamo.mark_dynamic(x, 0)
    assert metis_compile.explain(model, x, policy=policy).site("1").reason is None, "at the size it is compiled with"
