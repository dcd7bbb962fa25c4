"""What a monitor records of small models, beside the same computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import eager_backend
from tiny import MLP, NEAREST_POLICY, STOCHASTIC_POLICY, Attention, Twice
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import metis_compile
from metis_compile import Monitor, Policy
from metis_compile.numerics import QuantSpec
from metis_compile.statistics import operand_statistics

NVFP4 = QuantSpec.make("nvfp4")
Records = list[dict[str, Any]]


class Run:
    """A model whose training is monitored; `steps` trains it and gives the records of each sampled step."""

    def __init__(self, model: nn.Module, policy: Policy | str = NEAREST_POLICY, **options: Any) -> None:
        self.model, self.sent = model, []  # type: ignore[var-annotated]
        self.monitor = metis_compile.monitor(model, **{"every": 2, "to": self.sent.append, "vectors": None, **options})
        self.compiled: Any = torch.compile(model, backend=eager_backend(policy))
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(self, *micro_batches: Tensor) -> None:
        for x in micro_batches:
            self.compiled(x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def records(self) -> Records:
        """Those of the last step that was sampled."""
        found: Records = self.sent[-1]
        return found


@pytest.fixture
def run() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*args: Any, **options: Any) -> Run:
        runs.append(Run(*args, **options))
        return runs[-1]

    yield start
    for each in runs:
        each.monitor.close()


def pick(records: Sequence[dict[str, Any]], **about: Any) -> dict[str, Any]:
    (found,) = [r for r in records if all(r.get(name) == value for name, value in about.items())]
    return found


def check(record: dict[str, Any], x: Tensor, axis: int, spec: QuantSpec = NVFP4, rel: float = 1e-5) -> None:
    """That a record is of `x`, quantized along `axis`."""
    wanted = operand_statistics(x, spec, axis, vectors=None)
    for name, value in wanted.items():
        if value is None:
            assert record[name] is None, name
        else:
            # a value that another order of summation moved may round to another code
            assert record[name] == pytest.approx(float(value), rel=rel, abs=1e-4 if name == "underflow" else 1e-7), name
    assert record["format"] == str(spec)


def values_of(model: MLP, x: Tensor) -> dict[str, Tensor]:
    """Inputs, output and gradients of an MLP's products, with every operand quantized to nearest in NVFP4."""

    def q(t: Tensor, axis: int) -> Tensor:
        return metis_compile.quantize(t, "nvfp4", axis).dequantize()

    up, down = model.up.weight.detach(), model.down.weight.detach()
    hidden = torch.addmm(model.up.bias.detach(), q(x, 1), q(up, 1).T)
    leaf = hidden.clone().requires_grad_()
    inner = nn.functional.gelu(leaf)
    y = q(inner.detach(), 1) @ q(down, 1).T
    gradient = 2 * y / y.numel()
    back = q(gradient, 1) @ q(down, 0)
    inner.backward(back)
    return {"hidden": hidden, "inner": inner.detach(), "y": y, "gradient": gradient, "back": back, "at_up": leaf.grad}


def test_every_operand_of_every_product(run: Callable[..., Run]) -> None:
    torch.manual_seed(0)
    model, x = MLP(), torch.randn(40, 32) + 0.5
    by_hand = values_of(model, x)
    up, down = model.up.weight.detach().clone(), model.down.weight.detach().clone()
    trained = run(model)
    trained.step(x)
    records = trained.records()
    assert len(records) == 5 * 3  # x has no gradient: no dgrad of up
    assert {(r["step"], r["rank"], r["op"], r["call"], r["split"]) for r in records if r["operand"] != "product"} == {
        (0, 0, "linear", 0, None)
    }
    check(pick(records, site="up", gemm="fprop", operand="activation", side="left"), x, 1)
    check(pick(records, site="up", gemm="fprop", operand="weight", side="right"), up, 1)
    check(pick(records, site="up", gemm="wgrad", operand="activation"), x, 0)
    check(pick(records, site="up", gemm="wgrad", operand="gradient"), by_hand["at_up"], 0)
    check(pick(records, site="down", gemm="fprop", operand="activation"), by_hand["inner"], 1)
    check(pick(records, site="down", gemm="fprop", operand="weight"), down, 1)
    check(pick(records, site="down", gemm="dgrad", operand="gradient"), by_hand["gradient"], 1)
    check(pick(records, site="down", gemm="dgrad", operand="weight"), down, 0)
    check(pick(records, site="down", gemm="wgrad", operand="gradient"), by_hand["gradient"], 0)
    check(pick(records, site="down", gemm="wgrad", operand="activation"), by_hand["inner"], 0)


def picked(y: Tensor) -> Tensor:
    """The elements of a product of up to 64 rows and columns that are looked at."""
    return y[:: 1 if y.shape[0] <= 32 else 2, :: 1 if y.shape[1] <= 32 else 2]


def test_the_error_of_every_product(run: Callable[..., Run]) -> None:
    torch.manual_seed(0)
    model, x = MLP(), torch.randn(40, 32) + 0.5
    found = values_of(model, x)
    up, down, bias = (p.detach().clone() for p in (model.up.weight, model.down.weight, model.up.bias))

    def q(t: Tensor) -> Tensor:
        return metis_compile.quantize(t, "nvfp4", 0).dequantize()

    pairs = {
        ("up", "fprop"): (found["hidden"] - bias, x @ up.T),
        ("down", "fprop"): (found["y"], found["inner"] @ down.T),
        ("down", "dgrad"): (found["back"], found["gradient"] @ down),
        ("down", "wgrad"): (q(found["gradient"]).T @ q(found["inner"]), found["gradient"].T @ found["inner"]),
        ("up", "wgrad"): (q(found["at_up"]).T @ q(x), found["at_up"].T @ x),
    }
    trained = run(model)
    trained.step(x)
    for (site, gemm), (low, high) in pairs.items():
        record = pick(trained.records(), site=site, gemm=gemm, operand="product")
        wanted = picked(low - high).norm() / picked(high).norm()
        assert record["error"] == pytest.approx(float(wanted), rel=2e-4), (site, gemm)


@pytest.mark.parametrize("preset", ["best", "averis", "nvidia", "metis-paper", "fp8", "quartet2"])
def test_presets(run: Callable[..., Run], preset: str) -> None:
    torch.manual_seed(0)
    trained = run(MLP(), preset, vectors=256)
    x = torch.randn(64, 32) + 0.5
    for _ in range(3):
        trained.step(x)
    records = trained.records()
    assert {r["step"] for r in records} == {2}
    products = [r for r in records if r["operand"] == "product"]
    assert {(r["site"], r["gemm"]) for r in products} >= {("down", "fprop"), ("down", "dgrad"), ("down", "wgrad")}
    assert all(0 < r["error"] < 0.5 for r in products)
    operands = [r for r in records if r["operand"] != "product"]
    assert all(0 < r["error"] < 0.3 for r in operands)
    assert all((r["split_energy"] is None) == (r["split"] is None) for r in operands)
    split = [r for r in operands if r["split"] is not None]
    assert bool(split) == (preset in ("best", "averis", "metis-paper"))
    # a split takes nearly all of an energy whose rank it reaches, and what is left of it is never more
    assert all(-1e-3 <= r["split_energy"] <= 1 for r in split)
    assert any(r["hadamard"] for r in operands) == (preset in ("nvidia", "quartet2"))


def test_a_product_without_quantization_is_exact(run: Callable[..., Run]) -> None:
    """Of operands that are left high in a product that is rewritten there is no record, and nothing is lost in it."""
    policy = Policy.from_toml(
        """
        [recipe.one]
        weight = { format = "high" }
        activation = { format = "nvfp4" }
        gradient = { format = "high" }
        [[rule]]
        has_weight = true
        recipe = "one"
        """
    )
    trained = run(MLP(), policy)
    trained.step(torch.randn(40, 32))
    assert {r["operand"] for r in trained.records()} == {"activation", "product"}


def test_an_attention_has_two_activations(run: Callable[..., Run]) -> None:
    trained = run(Attention(), Policy.from_toml(ATTENTION), vectors=None)
    trained.step(torch.randn(2, 16, 32))
    records = [r for r in trained.records() if r["gemm"] == "fprop" and r["op"] == "matmul"]
    assert {(r["call"], r["operand"], r["side"]) for r in records if r["operand"] != "product"} == {
        (call, "activation", side) for call in (0, 1) for side in ("left", "right")
    }
    assert all(0 < r["error"] < 0.5 for r in records)


ATTENTION = """
[recipe.all]
weight = { format = "mxfp8" }
activation = { format = "mxfp8" }
gradient = { format = "mxfp8" }
[[rule]]
recipe = "all"
"""


def test_only_sampled_steps_are_recorded(run: Callable[..., Run]) -> None:
    trained = run(MLP(), every=3)
    for _ in range(7):
        trained.step(torch.randn(40, 32))
    assert [sent[0]["step"] for sent in trained.sent] == [0, 3, 6]
    assert trained.monitor.records == trained.records()


def test_of_several_micro_batches_the_first(run: Callable[..., Run]) -> None:
    torch.manual_seed(0)
    model, first, second = MLP(), torch.randn(40, 32), torch.randn(40, 32)
    gradient = values_of(model, first)["gradient"]
    trained = run(model)
    trained.step(first, second)
    assert len(trained.records()) == 15
    check(pick(trained.records(), site="up", gemm="fprop", operand="activation"), first, 1)
    check(pick(trained.records(), site="down", gemm="dgrad", operand="gradient"), gradient, 1)


def test_two_forwards_before_their_backwards(run: Callable[..., Run]) -> None:
    torch.manual_seed(0)
    model, first, second = MLP(), torch.randn(40, 32), torch.randn(40, 32)
    gradient = values_of(model, first)["gradient"]
    trained = run(model)
    (trained.compiled(second[:, :]) * 0).sum().backward()  # compiled, and not sampled
    trained.monitor.advance(2)
    y = trained.compiled(first)
    z = trained.compiled(second)
    z.square().mean().backward()  # of the second, which is not sampled
    y.square().mean().backward()
    trained.monitor.advance()
    assert len(trained.records()) == 15
    check(pick(trained.records(), site="down", gemm="dgrad", operand="gradient"), gradient, 1)


def test_forwards_without_gradients_are_not_recorded(run: Callable[..., Run]) -> None:
    trained = run(MLP())
    with torch.no_grad():
        trained.compiled(torch.full((40, 32), 100.0))
    trained.step(torch.ones(40, 32))
    assert pick(trained.records(), site="up", gemm="fprop", operand="activation")["amax"] == 1


def test_paused(run: Callable[..., Run]) -> None:
    trained = run(MLP())
    with trained.monitor.paused():
        trained.compiled(torch.full((40, 32), 100.0)).sum().backward()
    trained.step(torch.ones(40, 32))
    assert pick(trained.records(), site="up", gemm="fprop", operand="activation")["amax"] == 1


class Checkpointed(nn.Module):
    """A compiled MLP inside of a checkpoint."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.mlp, self.reentrant = MLP(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.mlp, x, use_reentrant=self.reentrant)
        return y


@pytest.mark.parametrize("reentrant", [False, True])
def test_around_a_checkpoint(reentrant: bool) -> None:
    torch.manual_seed(0)
    model, x = Checkpointed(reentrant), torch.randn(40, 32)
    found = values_of(model.mlp, x)
    sent: list[Records] = []
    with metis_compile.monitor(model, to=sent.append, vectors=None) as monitor:
        model.mlp.compile(backend=eager_backend(NEAREST_POLICY))
        model(x.clone().requires_grad_()).square().mean().backward()
        monitor.advance()
    (records,) = sent
    assert len(records) == 18
    assert {r["site"] for r in records} == {"mlp.up", "mlp.down"}
    check(pick(records, site="mlp.down", gemm="fprop", operand="activation"), found["inner"], 1)
    check(pick(records, site="mlp.up", gemm="wgrad", operand="gradient"), found["at_up"], 0)
    assert 0 < pick(records, site="mlp.up", gemm="wgrad", operand="product")["error"] < 0.3


def test_a_checkpoint_inside_of_the_graph(run: Callable[..., Run]) -> None:
    trained = run(Twice(reentrant=False))
    trained.step(torch.randn(40, 32))
    records = [r for r in trained.records() if r["operand"] == "product"]
    assert {(r["site"], r["gemm"], r["call"]) for r in records} >= {("mlp.down", "wgrad", 0), ("mlp.down", "wgrad", 1)}
    assert all(0 < r["error"] < 0.3 for r in records)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([MLP(), MLP(), MLP()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_blocks_that_share_a_graph_have_their_own_names() -> None:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(40, 32)
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            layer.up.weight.fill_(i + 1.0)
    sent: list[Records] = []
    with metis_compile.monitor(model, to=sent.append) as monitor:
        backend = eager_backend(NEAREST_POLICY)
        for layer in model.layers:
            layer.compile(backend=backend)
        model(x).square().mean().backward()
        monitor.advance()
    weights = [r for r in sent[0] if r["operand"] == "weight" and r["gemm"] == "fprop" and r["site"].endswith("up")]
    assert {r["site"]: r["amax"] for r in weights} == {f"layers.{i}.up": i + 1.0 for i in range(3)}
    assert {r["site"] for r in sent[0] if r["gemm"] == "wgrad"} == {
        f"layers.{i}.{name}" for i in range(3) for name in ("up", "down")
    }


def test_a_second_model_of_the_class_is_not_recorded(run: Callable[..., Run]) -> None:
    trained = run(MLP())
    other = MLP()
    trained.step(torch.ones(40, 32))
    trained.monitor.advance(2)
    torch.compile(other, backend=eager_backend(NEAREST_POLICY))(torch.full((40, 32), 9.0)).sum().backward()
    trained.compiled(torch.ones(40, 32)).sum().backward()
    trained.monitor.advance()
    assert pick(trained.records(), site="up", gemm="fprop", operand="activation")["amax"] == 1


def test_modules_that_are_named(run: Callable[..., Run]) -> None:
    trained = run(MLP(), modules="{down,head}")
    trained.step(torch.randn(40, 32))
    assert {r["site"] for r in trained.records()} == {"down"}


def test_another_format(run: Callable[..., Run]) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 32)
    trained = run(MLP(), STOCHASTIC_POLICY, what_if=("mxfp8", "nvfp4"))
    trained.step(x)
    record = pick(trained.records(), site="up", gemm="fprop", operand="activation")
    wanted = operand_statistics(x, QuantSpec.make("mxfp8"), 1, vectors=None)
    assert record["what_if"]["mxfp8"] == {
        name: pytest.approx(float(wanted[name]), rel=1e-5)
        for name in ("underflow", "saturation", "error", "scale_spread")
    }
    assert record["what_if"]["nvfp4"]["error"] == record["error"]
    gradient = pick(trained.records(), site="down", gemm="wgrad", operand="gradient")
    assert gradient["format"] == "nvfp4 1x16 stochastic round_up"
    assert gradient["what_if"]["nvfp4"]["error"] < gradient["error"]  # to nearest


def test_two_optimizers_make_one_step(run: Callable[..., Run]) -> None:
    trained = run(MLP())
    second = torch.optim.SGD(trained.model.down.parameters(), lr=0.1)  # type: ignore[union-attr]
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    trained.step(torch.randn(40, 32))
    second.step()
    other.step()
    assert trained.monitor.step == 1


def test_under_ddp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, x = MLP(), torch.randn(40, 32)
        found = values_of(model, x)
        with metis_compile.monitor(model, to=tmp_path / "statistics.jsonl", vectors=None) as monitor:
            wrapped = torch.compile(DistributedDataParallel(model), backend=eager_backend(NEAREST_POLICY))
            wrapped(x).square().mean().backward()
            monitor.advance()
        assert {r["rank"] for r in monitor.records} == {0}
        check(pick(monitor.records, site="down", gemm="dgrad", operand="gradient"), found["gradient"], 1)
        assert {r["site"] for r in monitor.records} == {"up", "down"}
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"every": 0}, ValueError, "every must be a whole number of at least 1, got 0"),
        ({"every": 2.5}, ValueError, "every must be a whole number of at least 1, got 2.5"),
        ({"start": -1}, ValueError, "start must be a whole number of at least 0, got -1"),
        ({"vectors": 0}, ValueError, "vectors must be a whole number of at least 1, got 0"),
        ({"what_if": ("mxfp9",)}, ValueError, "'mxfp9'; did you mean"),
        ({"what_if": "mxfp8"}, TypeError, "must be a list of formats"),
        ({"modules": "a{b"}, ValueError, "modules: .* has a { that is not closed"),
        ({"to": 5}, TypeError, "records go to a path, a function .* got int"),
        ({"to": "/proc/none/a.jsonl"}, OSError, "cannot write the statistics to /proc/none/a.jsonl"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(given: dict[str, Any], error: type[Exception], text: str) -> None:
    model = MLP()
    with pytest.raises(error, match=text) as caught:
        metis_compile.monitor(model, **given)
    assert "\n" not in str(caught.value)
    with metis_compile.monitor(model):  # nothing of it is left
        pass


def test_what_is_no_module_and_what_is_monitored_already() -> None:
    with pytest.raises(TypeError, match=r"an nn.Module, got function"):
        metis_compile.monitor(lambda x: x)  # type: ignore[arg-type]
    model = MLP()
    with metis_compile.monitor(model), pytest.raises(ValueError, match="monitored already"):
        metis_compile.monitor(torch.compile(model))


def train(model: nn.Module, compiled: Any) -> None:
    compiled(torch.randn(40, 32)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_a_model_that_was_not_compiled_by_metis() -> None:
    model = MLP()
    with (
        metis_compile.monitor(model),
        pytest.raises(RuntimeError, match=r'no training graph of this model was compiled with backend="metis"'),
    ):
        train(model, model)


def test_a_model_that_was_compiled_before() -> None:
    model = MLP()
    compiled = torch.compile(model, backend=eager_backend(NEAREST_POLICY))
    train(model, compiled)
    with metis_compile.monitor(model), pytest.raises(RuntimeError, match="before the first training step"):
        train(model, compiled)


def test_nothing_that_is_quantized() -> None:
    model = MLP()
    with metis_compile.monitor(model), pytest.raises(RuntimeError, match="none of its products is quantized"):
        train(model, torch.compile(model, backend=eager_backend("high")))


def test_a_closed_monitor_records_nothing(run: Callable[..., Run]) -> None:
    trained = run(MLP(), every=1)
    trained.step(torch.randn(40, 32))
    trained.monitor.close()
    trained.step(torch.randn(40, 32))
    assert len(trained.sent) == 1
    assert isinstance(trained.monitor, Monitor)


def test_closing_hands_on_the_step_that_is_running(run: Callable[..., Run]) -> None:
    trained = run(MLP())
    trained.compiled(torch.randn(40, 32)).sum().backward()
    assert trained.sent == []
    trained.monitor.close()
    assert len(trained.records()) == 15
