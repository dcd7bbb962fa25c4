"""One model, many treatments: FP4 here, FP8 there, another format for each GEMM, one operand high."""

from __future__ import annotations

import torch
from by_hand import SAME_DRAWS, ByHand, assert_same, gradients
from tiny import MLP
from torch import Tensor, nn

import metis_compile
from metis_compile import Policy

MIXED = Policy.from_toml(
    """
    [recipe.w4a4g4]
    weight = { format = "nvfp4", block = "16x16" }
    activation = { format = "nvfp4" }
    gradient = { format = "nvfp4" }
    [recipe.fp8]
    weight = { format = "fp8", block = "128x128" }
    activation = { format = "fp8", block = "1x128" }
    gradient = { format = "fp8_e5m2", block = "row" }
    [recipe.mx]
    weight = { format = "mxfp8" }
    activation = { format = "mxfp4", scale_mode = "rceil" }
    gradient = { format = "mxfp8_e5m2", scale_mode = "even" }

    [[rule]]
    module = "fp8.*"
    recipe = "fp8"
    [[rule]]
    module = "mixed.*"
    gemm = "dgrad"
    recipe = "mx"
    [[rule]]
    module = "mixed.*"
    gemm = "wgrad"
    operand = "gradient"
    recipe = "high"
    [[rule]]
    module = "mixed.up"
    gemm = "wgrad"
    when = "k >= 16 and m == 48"
    recipe = "fp8"
    [[rule]]
    recipe = "w4a4g4"
    """,
    name="mixed.toml",
)

FP4 = {"w": "nvfp4 16x16 nearest", "x": "nvfp4 1x16 nearest"}
EXPECTED = {
    "fp4": {
        "fprop": {"activation": FP4["x"], "weight": FP4["w"]},
        "dgrad": {"gradient": FP4["x"], "weight": FP4["w"]},
        "wgrad": {"gradient": FP4["x"], "activation": FP4["x"]},
    },
    "fp8": {
        "fprop": {"activation": "fp8 1x128 nearest", "weight": "fp8 128x128 nearest"},
        "dgrad": {"gradient": "fp8_e5m2 row nearest", "weight": "fp8 128x128 nearest"},
        "wgrad": {"gradient": "fp8_e5m2 row nearest", "activation": "fp8 1x128 nearest"},
    },
    "mixed": {
        "fprop": {"activation": FP4["x"], "weight": FP4["w"]},
        "dgrad": {"gradient": "mxfp8_e5m2 1x32 nearest even", "weight": "mxfp8 1x32 nearest floor"},
        "wgrad": {"gradient": None, "activation": FP4["x"]},
    },
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fp4, self.fp8, self.mixed = MLP(), MLP(), MLP()

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(torch.tanh(self.fp8(torch.tanh(self.fp4(x)))))


def by_module(model: Model, x: Tensor) -> Tensor:
    """The same model by hand, each part with its own specs; its backward too, since the specs are kept per call."""
    for name in ("fp4", "fp8", "mixed"):
        specs = {g: dict(o) for g, o in EXPECTED[name].items()}
        with ByHand(specs) as hand:
            if name == "mixed":
                hand.specs_of = {model.mixed.up.weight.data_ptr(): MIXED_UP}
            x = getattr(model, name)(x)
        if name != "mixed":
            x = torch.tanh(x)
    return x


MIXED_UP = {**EXPECTED["mixed"], "wgrad": {"gradient": None, "activation": "fp8 1x128 nearest"}}


def test_each_part_gets_its_own_treatment() -> None:
    model, x = Model(), torch.randn(32, 32)
    run = torch.compile(model, backend="metis", options={"policy": MIXED}, fullgraph=True)
    results = []
    for call in (run, lambda x: by_module(model, x)):
        loss = call(x).square().mean()
        loss.backward()
        results.append({"loss": loss.detach(), **gradients(model)})
    assert_same(*results, SAME_DRAWS)


def test_explain_names_the_rules() -> None:
    found = metis_compile.explain(Model(), torch.randn(32, 32), policy=MIXED)
    site = found.site("mixed.up", "wgrad")
    assert site.treatment == {"gradient": "high", "activation": "fp8 1x128 nearest"}
    assert "rule 3" in site.rule
    assert "rule 4" in site.rule
    assert found.site("fp8.up").recipe == "fp8"
    assert found.unused_rules == ()


def test_the_example_file_trains() -> None:
    from pathlib import Path

    model, x = MLP(), torch.randn(32, 32)
    path = Path(__file__).parents[2] / "examples" / "policies" / "mixed.toml"
    torch.compile(model, backend="metis", options={"policy": str(path)})(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
