"""A calibrated policy, beside what `blame` and `explain` say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import metis_compile
from metis_compile import BlameError, Calibration, CalibrationError, Policy
from metis_compile.calibration.candidates import Candidates
from metis_compile.cli.root import app
from metis_compile.cost_model import Device, DeviceError

# Nothing but products takes time: high 1, FP8 a half, FP4 a quarter.
DEVICE = Device(
    name="products",
    rates={"float32": 1e9, "bfloat16": 1e9, "fp8": 2e9, "mxfp8": 2e9, "fp4": 4e9},
    bandwidth=1e18,
    start=0,
)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    def __init__(self, layers: int = 2, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


MODEL = Model()
BATCHES = [torch.randn(64, 32, generator=torch.Generator().manual_seed(n)) for n in range(2)]
CANDIDATES = ("mxfp8", "nvfp4")


def loss(x: Tensor) -> Tensor:
    return MODEL(x).square().mean()


def calibrated(**given: Any) -> Calibration:
    return metis_compile.calibrate(loss, BATCHES, **({"device": DEVICE, "candidates": CANDIDATES} | given))


@pytest.fixture(scope="module")
def within_cost() -> Calibration:
    return calibrated(budget_cost=0.45, error="gradient")


@pytest.fixture(scope="module")
def within_error(within_cost: Calibration) -> Calibration:
    return calibrated(budget_error=within_cost.candidates["nvfp4"].gradient / 2, error="gradient")


def test_it_keeps_the_budget_of_cost_and_errs_less_than_what_costs_as_much(within_cost: Calibration) -> None:
    found = within_cost
    assert found.candidates["nvfp4"].cost < found.measured.cost <= 0.45
    assert found.measured.gradient < found.candidates["nvfp4"].gradient
    assert found.predicted.gradient == pytest.approx(found.measured.gradient, rel=0.2)
    assert {c.recipe for c in found.choices} >= {"mxfp8", "nvfp4"}


def test_it_keeps_the_budget_of_error_and_costs_less_than_what_errs_as_much(within_error: Calibration) -> None:
    found = within_error
    assert found.measured.gradient <= found.limit == found.candidates["nvfp4"].gradient / 2
    assert found.measured.cost < 1
    assert found.candidates["nvfp4"].cost < found.measured.cost


@pytest.mark.parametrize("which", ["within_cost", "within_error"])
def test_numbers_are_those_of_blame_and_explain(which: str, request: pytest.FixtureRequest) -> None:
    found: Calibration = request.getfixturevalue(which)
    explained = metis_compile.explain(loss, BATCHES[0], policy=found.policy)
    assert found.measured.cost == pytest.approx(explained.cost(DEVICE).ratio, rel=1e-9)
    assert found.predicted.cost == pytest.approx(found.measured.cost, rel=1e-9)  # nothing is shared on this device
    blamed = metis_compile.blame(loss, BATCHES, policy=found.policy, by="kind")
    assert found.measured.loss == blamed.total.loss / blamed.loss
    assert found.measured.gradient == blamed.total.gradient
    alone = {(s.module, s.gemm, s.operand): s.alone for s in blamed.shares}
    chosen = [c for c in found.choices if c.recipe != "high"]
    assert len(alone) == len(chosen)
    for c in chosen:
        effect = alone[c.module, c.gemm, c.operand]
        assert c.considered[c.recipe].loss == effect.loss / blamed.loss
        assert c.considered[c.recipe].gradient == effect.gradient
    predicted = sum(c.considered[c.recipe].gradient ** 2 for c in chosen) ** 0.5
    assert found.predicted.gradient == pytest.approx(predicted)


def test_the_file_is_the_policy(within_cost: Calibration, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(within_cost.to_toml())
    assert Policy.load(tmp_path / "run.toml") == within_cost.policy
    assert "# nvfp4" in within_cost.to_toml()
    assert within_cost.to_toml().count("[[rule]]") < 2 + len(within_cost.choices)
    assert "layers.0" not in within_cost.to_toml()
    assert "this policy, measured" in within_cost.table
    values = json.loads(json.dumps(within_cost.to_dict()))
    assert Policy.from_toml(values["toml"]) == within_cost.policy


def test_candidates_that_do_the_same_are_one() -> None:
    candidates = Candidates.of(("mxfp8", "nvfp4", "best"))
    assert candidates.distinct(("dgrad", "gradient")) == ["high", "mxfp8", "nvfp4"]
    assert candidates.distinct(("fprop", "weight")) == ["high", "mxfp8", "nvfp4", "best"]
    ways = candidates.ways()
    assert ways[0] == candidates.wholes["high"]
    assert candidates.wholes["nvfp4"] in ways
    assert len(ways) == 6 * 4 * 4
    for way in ways:  # a product's operands are of one family, or both high
        for gemm, one, other in (("fprop", "activation", "weight"), ("dgrad", "gradient", "weight")):
            assert len({{"best": "nvfp4"}.get(way[gemm, o], way[gemm, o]) for o in (one, other)}) == 1


def test_operands_that_a_transform_ties_are_measured_together() -> None:
    candidates = Candidates.of(("nvfp4", "quartet2"))
    tied = [part for part in candidates.parts("wgrad") if len(part) == 2]
    assert tied == [{("wgrad", o): "quartet2-backward" for o in ("gradient", "activation")}]
    found = metis_compile.calibrate(
        loss, BATCHES[:1], device=DEVICE, candidates=("quartet2",), budget_cost=0.5, error="gradient"
    )
    assert found.predicted.gradient == pytest.approx(found.measured.gradient, rel=0.3)
    assert Policy.from_toml(found.to_toml()) == found.policy


def test_depth_and_the_loss_as_it_was() -> None:
    model = Model(layers=4)
    before = [p.detach().clone() for p in model.parameters()]
    done: list[tuple[int, int]] = []
    found = metis_compile.calibrate(
        lambda x: model(x).square().mean(),
        BATCHES[:1],
        device=DEVICE,
        candidates=["nvfp4"],
        budget_cost=0.45,
        by="depth",
        error="gradient",
        progress=lambda *at: done.append(at),
    )
    assert {c.blocks for c in found.choices} == {"first 25%", None, "last 25%"}
    assert found.measured.cost <= 0.45
    assert 'blocks = "' in found.to_toml()
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert [n for n, _ in done] == list(range(1, len(done) + 1))
    assert done[-1][0] == done[-1][1]


class LossOf(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).square().mean()


class Mean(nn.Module):
    """The same under other names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.other = model

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x).square().mean()


def test_the_cost_of_a_larger_model() -> None:
    small = LossOf(MODEL)
    with torch.device("meta"):
        large = LossOf(Model(layers=6, width=512))
        batch = torch.empty(256, 512)
    given: Any = {"device": "b200", "candidates": ["nvfp4"], "budget_cost": 2.0}
    found = metis_compile.calibrate(small, BATCHES[:1], cost_of=(large, (batch,)), **given)
    ratio = metis_compile.explain(large, batch, policy=found.policy).cost("b200").ratio
    assert found.measured.cost == pytest.approx(ratio, rel=1e-9)
    with pytest.raises(CalibrationError, match=r"cost_of has no layers called 'model.layers.*.up', which the loss has"):
        metis_compile.calibrate(small, BATCHES[:1], cost_of=(Mean(large.model), (batch,)), **given)
    with pytest.raises(ValueError, match='cost_of needs by="kind"'):
        metis_compile.calibrate(small, BATCHES[:1], cost_of=(large, (batch,)), by="depth", **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give one budget, budget_cost or budget_error"),
        ({"budget_cost": 0.9, "budget_error": 0.1}, "give one budget"),
        ({"budget_cost": 0}, "budget_cost must be a number above 0, got 0"),
        ({"budget_error": float("nan")}, "budget_error must be a number above 0, got nan"),
        ({"budget_cost": True}, "budget_cost must be a number above 0, got True"),
        ({"budget_cost": 0.9, "candidates": ["nvfp5"]}, r"there is no candidate 'nvfp5'; .* did you mean 'nvfp4'\?"),
        ({"budget_cost": 0.9, "candidates": ["high"]}, "there must be a candidate besides high, got none"),
        (
            {"budget_cost": 0.9, "candidates": ["fp8", "nvfp4", "four-over-six", "best", "metis", "averis"]},
            r"6 candidates make \d+ ways to treat a module, more than 512: give fewer",
        ),
        ({"budget_cost": 0.2}, r"nothing that was considered costs 0.2x .* on products; the nearest costs 0.\d+x"),
        (
            {"budget_error": 1e-9, "error": "gradient"},
            r"errs 1e-09 of the gradient or less; the nearest errs 0\.\d+ at",
        ),
    ],
)
def test_what_cannot_be_calibrated(given: dict[str, Any], said: str) -> None:
    with pytest.raises(CalibrationError, match=said) as raised:
        calibrated(**given)
    assert "\n" not in str(raised.value)


def test_what_is_no_loss_no_device_and_no_way() -> None:
    with pytest.raises(BlameError, match="the loss must be a scalar tensor"):
        metis_compile.calibrate(MODEL, BATCHES, budget_cost=0.9)
    with pytest.raises(BlameError, match="there must be a batch at least, got none"):
        metis_compile.calibrate(loss, [], budget_cost=0.9)
    with pytest.raises(DeviceError, match="there is no device 'b20'"):
        calibrated(device="b20", budget_cost=0.9)
    with pytest.raises(ValueError, match="by must be kind or depth, got 'layer'"):
        calibrated(by="layer", budget_cost=0.9)
    with pytest.raises(ValueError, match="error must be loss or gradient, got 'x'"):
        calibrated(error="x", budget_cost=0.9)
    weight = torch.randn(32, 32, requires_grad=True)

    def outer(x: Tensor) -> Tensor:
        return (weight * x[:32]).square().mean()

    with pytest.raises(CalibrationError, match="mxfp8, nvfp4 quantize nothing of this model"):
        metis_compile.calibrate(outer, BATCHES, candidates=CANDIDATES, budget_cost=0.9)


TARGET = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
def target():
    return lambda x: model(x).square().mean(), [torch.ones(32, 32)]
"""


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "of_user.py").write_text(TARGET)
    (tmp_path / "products.toml").write_text(
        "bandwidth = 1e18\nstart = 0\nautocast = true\n[rates]\nfloat32 = 1e9\nbfloat16 = 1e9\nfp4 = 4e9\n"
    )
    out = tmp_path / "run.toml"
    given = ["calibrate", f"{tmp_path / 'of_user.py'}:target", "--device", str(tmp_path / "products.toml")]
    full = [*given, "--candidates", "nvfp4", "--budget-cost", "0.8", "--out", str(out)]
    result = CliRunner().invoke(app, [*full, "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["measured"]["cost"] <= 0.8
    assert Policy.load(out) == Policy.from_toml(values["toml"])
    for more, said in (
        (["--by", "layer"], "--by must be kind or depth"),
        (["--error", "x"], "--error must be loss or gradient"),
        (["--out", str(tmp_path / "none" / "run.toml")], "there is no folder"),
        ([], "give one budget"),
        (["--budget-cost", "0.9", "--candidates", "nvfp5"], "did you mean 'nvfp4'?"),
    ):
        wrong = CliRunner().invoke(app, [*given, *more])
        assert wrong.exit_code == 2
        assert said in wrong.output
