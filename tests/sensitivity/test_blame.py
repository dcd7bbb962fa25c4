"""What each operand does to loss and gradients, beside the same written out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import metis_compile
from metis_compile import Blame, BlameError, Policy
from metis_compile.cli.root import app
from metis_compile.numerics import QuantSpec, fake_quantize

NEAREST = QuantSpec.make("nvfp4")
POLICY = Policy.from_toml(
    """
[recipe.four]
weight = "nvfp4"
activation = "nvfp4"
gradient = "nvfp4"
[[rule]]
recipe = "four"
""",
    name="four.toml",
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


MODEL = Model()
BATCHES = [torch.randn(48, 32, generator=torch.Generator().manual_seed(n)) for n in range(2)]


def loss(x: Tensor) -> Tensor:
    return MODEL(x).square().mean()


@pytest.fixture(scope="module")
def found() -> Blame:
    return metis_compile.blame(loss, BATCHES, policy=POLICY)


def q(x: Tensor, axis: int, wanted: bool) -> Tensor:
    return fake_quantize(x, NEAREST, axis) if wanted else x


UNITS = [
    (layer, gemm, operand)
    for layer in (0, 1)
    for gemm, operands in (
        ("fprop", ("activation", "weight")),
        ("dgrad", ("gradient", "weight")),
        ("wgrad", ("gradient", "activation")),
    )
    for operand in operands
    if (layer, gemm) != (0, "dgrad")  # the input needs no gradient
]


def by_hand(x: Tensor, on: Any) -> tuple[float, list[Tensor]]:
    """Loss and gradients with the operands quantized for which on(layer, gemm, operand)."""
    w = [layer.weight.detach() for layer in MODEL.layers]
    inputs = [x]
    for i in (0, 1):
        a = q(inputs[i], 1, on(i, "fprop", "activation"))
        inputs.append(a @ q(w[i], 1, on(i, "fprop", "weight")).T)
    gradient = 2 * inputs[2] / inputs[2].numel()
    gradients: list[Any] = [None, None]
    for i in (1, 0):
        g = q(gradient, 0, on(i, "wgrad", "gradient"))
        gradients[i] = g.T @ q(inputs[i], 0, on(i, "wgrad", "activation"))
        gradient = q(gradient, 1, on(i, "dgrad", "gradient")) @ q(w[i], 0, on(i, "dgrad", "weight"))
    return float(inputs[2].square().mean()), gradients


def expected(on: Any) -> tuple[float, float]:
    losses, squares = [], []
    for x in BATCHES:
        value, gradients = by_hand(x, on)
        reference, high = by_hand(x, lambda *_: False)
        losses.append(value - reference)
        off = sum(float((a - b).square().sum()) for a, b in zip(gradients, high, strict=True))
        squares.append(off / sum(float(b.square().sum()) for b in high))
    return sum(losses) / 2, (sum(squares) / 2) ** 0.5


def check(effect: Any, on: Any) -> None:
    change, gradient = expected(on)
    assert effect.loss == pytest.approx(change, abs=1e-6)  # losses near 0.1, in float32
    assert effect.gradient == pytest.approx(gradient, rel=5e-3, abs=1e-6)  # sums in another order turn a code or two


def test_every_operand_is_what_it_is_by_hand(found: Blame) -> None:
    assert {(s.module, s.gemm, s.operand) for s in found.shares} == {(f"layers.{i}", g, o) for i, g, o in UNITS}
    assert all(share.treatments == ("nvfp4 1x16 nearest",) for share in found.shares)
    check(found.total, lambda *_: True)
    for share in found.shares:
        unit = (int(share.module[-1]), share.gemm, share.operand)
        check(share.alone, lambda *given, unit=unit: given == unit)
        check(share.without, lambda *given, unit=unit: given != unit)
    assert found.loss == pytest.approx(sum(by_hand(x, lambda *_: False)[0] for x in BATCHES) / 2)


def test_backward_alone_leaves_the_loss(found: Blame) -> None:
    backward = [share for share in found.shares if share.gemm != "fprop"]
    assert all(share.alone.loss == 0 and share.alone.gradient > 0 for share in backward)
    assert found.ranked("gradient")[0].alone.gradient == max(share.alone.gradient for share in found.shares)


def test_layers_of_one_kind_are_measured_together() -> None:
    found = metis_compile.blame(loss, BATCHES[:1], policy=POLICY, by="kind")
    assert {share.module for share in found.shares} == {"layers.*"}
    assert len(found.shares) == 6
    (activation,) = [s for s in found.shares if (s.gemm, s.operand) == ("fprop", "activation")]
    both = [by_hand(BATCHES[0], lambda i, g, o: (g, o) == ("fprop", "activation"))[0]]
    assert activation.alone.loss == pytest.approx(both[0] - by_hand(BATCHES[0], lambda *_: False)[0], abs=1e-6)


def test_nothing_is_changed_and_a_second_time_is_the_same() -> None:
    before = [p.detach().clone() for p in MODEL.parameters()]
    policy = Policy.load("best")
    done: list[tuple[int, int]] = []
    wide = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))

    def of_wide(x: Tensor) -> Tensor:
        return wide(x).square().mean()

    batch, state = torch.randn(128, 64), torch.random.get_rng_state()
    first = metis_compile.blame(of_wide, [batch], policy=policy, by="kind", progress=lambda *at: done.append(at))
    assert first == metis_compile.blame(of_wide, [batch], policy=policy, by="kind")
    assert done == [(n + 1, len(done)) for n in range(len(done))]
    assert all(p.grad is None for p in wide.parameters())
    assert all(torch.equal(p, b) for p, b in zip(MODEL.parameters(), before, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_two_operands_of_a_transform_are_one() -> None:
    text = 'format = "nvfp4", hadamard = true'
    policy = Policy.from_toml(
        f"[recipe.a]\nweight = {{ {text} }}\nactivation = {{ {text} }}\ngradient = {{ {text} }}\n[[rule]]\nrecipe = 'a'"
    )
    found = metis_compile.blame(loss, BATCHES[:1], policy=policy, by="kind")
    assert sorted((share.gemm, share.operand) for share in found.shares) == [
        ("dgrad", "both"),
        ("fprop", "both"),
        ("wgrad", "both"),
    ]
    assert all(share.alone.gradient > 0 for share in found.shares)


@pytest.mark.parametrize(
    ("given", "batches", "said"),
    [
        (loss, [], "blame needs a batch at least, got none"),
        (lambda x: MODEL(x), BATCHES, r"the loss must be a scalar tensor, got a tensor of the shape \[48, 32\]"),
        (lambda x: 3.0, BATCHES, "the loss must be a scalar tensor, got a float"),
        (lambda x: x.mean(), BATCHES, "the loss has no gradient"),
        (loss, [BATCHES[0], BATCHES[1][:32]], "batches must all have the same shapes, and batch 2 differs"),
        (lambda x: loss(x) if print("x") is None else 0, BATCHES, "the loss must be one graph for torch.compile"),
    ],
)
def test_what_cannot_be_measured(given: Any, batches: Any, said: str) -> None:
    with pytest.raises(BlameError, match=said):
        metis_compile.blame(given, batches, policy=POLICY)


def test_a_policy_that_quantizes_nothing() -> None:
    with pytest.raises(BlameError, match=r"policy high.toml quantizes nothing of this model"):
        metis_compile.blame(loss, BATCHES, policy="high")
    with pytest.raises(ValueError, match="by must be module or kind, got 'layer'"):
        metis_compile.blame(loss, BATCHES, by="layer")  # type: ignore[arg-type]


TARGET = """
import torch
from torch import nn
model = nn.Linear(32, 32)
def target():
    return lambda x: model(x).square().mean(), [torch.ones(16, 32)]
def wrong():
    return model
"""


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(POLICY.to_toml())
    (tmp_path / "of_user.py").write_text(TARGET)
    where, policy = tmp_path / "of_user.py", str(tmp_path / "run.toml")
    picture = tmp_path / "map.png"
    given = ["blame", f"{where}:target", "--policy", policy]
    result = CliRunner().invoke(app, [*given, "--json", "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert {share["gemm"] for share in json.loads(result.stdout)["shares"]} == {"fprop", "wgrad"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = CliRunner().invoke(app, given).stdout
    assert "gradient without" in table
    for more, said in (
        (["--by", "layer"], "--by must be module or kind"),
        (["--plot", str(tmp_path / "none" / "map.png")], "there is no folder"),
        (["--plot-by", "x"], "--plot-by must be loss or gradient"),
    ):
        wrong = CliRunner().invoke(app, [*given, *more])
        assert wrong.exit_code == 2
        assert said in wrong.output
    wrong = CliRunner().invoke(app, ["blame", f"{where}:wrong"])
    assert wrong.exit_code == 2
    assert "must return (loss, batches)" in wrong.output
