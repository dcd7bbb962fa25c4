import re
from collections.abc import Callable

import pytest

from metis_compile.policy import OPERANDS, Policy, Query, presets
from metis_compile.policy.presets import preset_path

MEAN_PAPER = ", split mean factors=(nvfp4 1x16 nearest) fold=false partner=residual"
SPECTRAL_PAPER = (
    ", split spectral rank=0.015 sample=0.01 power_steps=0 factors=(nvfp4 1x16 stochastic none) fold=false "
    "partner=residual refresh=8 track=false"
)

TREATMENTS = {
    "averis": ["nvfp4 1x16 nearest", "nvfp4 1x16 nearest, split mean", "nvfp4 1x16 stochastic round_up"],
    "averis-hadamard": [
        "nvfp4 1x16 nearest",
        "nvfp4 1x16 nearest" + MEAN_PAPER,
        "nvfp4 1x16 stochastic none" + MEAN_PAPER,
    ],
    "averis-paper": [
        "nvfp4 1x16 nearest",
        "nvfp4 1x16 nearest" + MEAN_PAPER,
        "nvfp4 1x16 stochastic none" + MEAN_PAPER,
    ],
    "chon": [
        "nvfp4 16x16 nearest, split channels partner=residual",
        "nvfp4 1x16 nearest, split channels partner=residual",
        "nvfp4 1x16 nearest",
    ],
    "dge-occ": ["fp4 row nearest, estimator dge", "fp4 row nearest, split clamp", "fp8_e5m2 tensor nearest"],
    "best": [
        "nvfp4 1x16 nearest 4/6-mse",
        "nvfp4 1x16 nearest 4/6-mse, split spectral rank_least=16 compensate=true track_share=0.1",
        "nvfp4 1x16 stochastic round_up",
    ],
    "fp4-ffn": ["fp4 128x128 nearest", "fp4 1x128 nearest", "fp8 1x128 nearest"],
    "four-over-six": ["nvfp4 1x16 nearest 4/6-mse"] * 2 + ["nvfp4 1x16 stochastic round_up 4/6-expected"],
    "fp8": ["fp8 tensor nearest", "fp8 tensor nearest", "fp8_e5m2 tensor nearest"],
    "metis": [
        "nvfp4 1x16 nearest",
        "nvfp4 1x16 nearest, split spectral rank=0.015 compensate=true track_share=0.1",
        "nvfp4 1x16 stochastic round_up, split spectral rank=0.015 track_share=0.1",
    ],
    "metis-fp8": [
        "fp8 128x128 nearest",
        "fp8 1x128 nearest, split spectral rank_least=16 compensate=true track_share=0.1",
        "fp8 1x128 nearest",
    ],
    "metis-paper": ["nvfp4 1x16 stochastic none" + SPECTRAL_PAPER] * 3,
    "metis-v1": ["nvfp4 1x16 stochastic none" + SPECTRAL_PAPER] * 2
    + ["nvfp4 1x16 stochastic none" + SPECTRAL_PAPER + " adaptive_rate=true"],
    "mxfp4": ["mxfp4 1x32 nearest floor"] * 2 + ["mxfp4 1x32 stochastic round_up floor"],
    "mxfp4-hadamard": ["mxfp4 1x32 nearest floor"] * 2 + ["mxfp4 1x32 stochastic round_up floor"],
    "mxfp8": ["mxfp8 1x32 nearest floor"] * 3,
    "nvfp4": ["nvfp4 1x16 nearest"] * 2 + ["nvfp4 1x16 stochastic round_up"],
    "nvidia": ["nvfp4 16x16 nearest", "nvfp4 1x16 nearest", "nvfp4 1x16 stochastic 17/16"],
    "quartet2": ["nvfp4 1x16 nearest 4/6-mse"] * 2 + ["nvfp4 1x16 stochastic round_up 4/6-expected"],
    "ue5m3": [
        f"nvfp4_ue5m3 {spec}, amax held for 50 steps"
        for spec in ("16x16 nearest", "1x16 nearest", "1x16 stochastic round_up")
    ],
    "ufp4": ["ufp4 1x16 nearest, hadamard fixed"] * 2 + ["ufp4 1x16 stochastic round_up, hadamard fixed"],
}
QUANTIZED = list(TREATMENTS)

# What differs in wgrad, where anything does.
WGRAD = {
    "averis-hadamard": [TREATMENTS["averis-hadamard"][0]]
    + [text + ", hadamard fixed" for text in TREATMENTS["averis-hadamard"][1:]],
    "nvidia": [TREATMENTS["nvidia"][0]] + [text + ", hadamard fixed" for text in TREATMENTS["nvidia"][1:]],
    "chon": ["nvfp4 16x16 nearest"]
    + [f"nvfp4 1x16 {rounding}, hadamard fixed" for rounding in ("nearest", "stochastic 17/16")],
    "dge-occ": ["fp8 tensor nearest"] * 2 + ["fp8_e5m2 tensor nearest"],
    "fp4-ffn": ["fp8 128x128 nearest", "fp8 1x128 nearest", "fp8 1x128 nearest"],
    "mxfp4-hadamard": ["mxfp4 1x32 nearest floor"] + ["mxfp4 1x32 nearest floor, hadamard fixed 32"] * 2,
    "quartet2": ["nvfp4 1x16 eden, hadamard fresh"] * 3,
}
# What rules of the preset's own decide: its first treatment is not for these.
OTHERS = {"fp4-ffn": ["attn", "attention"]}

LINEARS = [
    "",
    "model.layers.0.mlp.gate_proj",
    "model.layers.0.self_attn.q_proj",
    "transformer.h.0.attn.c_attn",
    "bert.encoder.layer.0.output.dense",
    "bert.encoder.layer.0.attention.output.dense",
    "blocks.3.attn.proj_out",
    "blocks.0.heads.1.q",
    "model.decoder.layers.0.fc1",
]


def test_the_presets_that_ship() -> None:
    assert presets() == sorted(presets())
    assert {"high", *QUANTIZED} == set(presets())


@pytest.mark.parametrize("name", QUANTIZED)
def test_what_a_preset_does_to_a_linear(name: str, query: Callable[..., Query]) -> None:
    policy = Policy.load(name)
    own = [module for module in LINEARS if not any(part in OTHERS.get(name, ()) for part in re.split(r"[._]", module))]
    for module in own:
        decisions = [policy.decide(query(module=module, operand=operand)) for operand in OPERANDS]
        assert [str(decision.treatment) for decision in decisions] == TREATMENTS[name], module
        rules = {decision.rule for decision in decisions}
        assert rules == {policy.rules[-1].label} or all(rule.startswith(f"{name}.toml rule") for rule in rules)
        backward = [policy.decide(query(module=module, operand=operand, gemm="wgrad")) for operand in OPERANDS]
        assert [str(decision.treatment) for decision in backward] == WGRAD.get(name, TREATMENTS[name])


def test_nvidia_leaves_its_last_blocks_high_and_one_line_changes_it(query: Callable[..., Query]) -> None:
    last = query(block=(7, 8))
    assert Policy.load("nvidia").decide(last).recipe == "last-blocks"
    assert Policy.load("nvidia").decide(query(block=(5, 8))).recipe == "nvidia"
    changed = Policy.from_toml("extends = 'nvidia'\nrecipe.last-blocks = 'nvidia'")
    assert str(changed.decide(last).treatment) == TREATMENTS["nvidia"][1]


def test_chon_leaves_the_projection_of_values_high(query: Callable[..., Query]) -> None:
    policy = Policy.load("chon")
    for module in ("blocks.0.attn.v", "model.layers.3.self_attn.v_proj", "bert.encoder.layer.0.attention.self.value"):
        for gemm in ("fprop", "dgrad", "wgrad"):
            assert policy.decide(query(module=module, gemm=gemm)).recipe == "post-qk"
    assert policy.decide(query(module="blocks.0.attn.q", gemm="dgrad")).recipe == "chon"


def test_fp4_ffn_takes_attention_to_fp8(query: Callable[..., Query]) -> None:
    policy = Policy.load("fp4-ffn")
    for module in ("blocks.0.attn.q", "model.layers.3.self_attn.o_proj", "bert.encoder.layer.0.attention.output.dense"):
        assert str(policy.decide(query(module=module)).treatment) == "fp8 1x128 nearest"
    assert str(policy.decide(query(module="blocks.0.mlp.up")).treatment) == "fp4 1x128 nearest"


def test_quartet2_rotates_dgrad_like_wgrad(query: Callable[..., Query]) -> None:
    policy = Policy.load("quartet2")
    decisions = [policy.decide(query(gemm="dgrad", operand=operand)) for operand in ("gradient", "weight")]
    assert {str(decision.treatment) for decision in decisions} == {"nvfp4 1x16 eden, hadamard fresh"}


def test_hadamard_transforms_come_in_pairs(query: Callable[..., Query]) -> None:
    """One operand transformed and the other not would be another product."""
    pairs = {"fprop": ("activation", "weight"), "dgrad": ("gradient", "weight"), "wgrad": ("gradient", "activation")}
    for name in presets():
        for gemm, operands in pairs.items():
            treatments = [Policy.load(name).decide(query(gemm=gemm, operand=o)).treatment for o in operands]
            assert len({(t.hadamard, t.hadamard_size) for t in treatments}) == 1, (name, gemm)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize(
    ("recipe", "queries"),
    [
        ("heads", [{"kind": "head", "module": module} for module in ("lm_head", "model.layers.3.mlp.up_proj")]),
        ("routers", [{"kind": "router"}]),
        ("adapters", [{"kind": "adapter"}]),
        ("attention", [{"has_weight": False, "op": "bmm"}, {"has_weight": False, "op": "matmul", "gemm": "dgrad"}]),
    ],
)
def test_what_stays_high_by_rule_and_one_line_that_changes_it(
    name: str, recipe: str, queries: list[dict[str, object]], query: Callable[..., Query]
) -> None:
    policy = Policy.load(name)
    changed = Policy.from_toml(f"extends = '{name}'\nrecipe.{recipe} = '{name}'")
    for changes in queries:
        for operand in OPERANDS:
            asked = query(operand=operand, **changes)
            assert policy.decide(asked).treatment.format == "high", changes
            assert policy.decide(asked).recipe == recipe
            assert changed.decide(asked).treatment == policy.recipe(name).treatment(operand)


def test_high_leaves_everything(query: Callable[..., Query]) -> None:
    policy = Policy.load("high")
    assert policy.recipes == ()
    for changes in ({}, {"kind": "head"}, {"has_weight": False}, {"operand": "gradient", "gemm": "wgrad"}):
        decision = policy.decide(query(**changes))
        assert decision.treatment.format == "high"
        assert decision.index == 0


@pytest.mark.parametrize("name", [*presets(), "base"])
def test_a_preset_is_commented_and_ends_with_a_rule_for_everything(name: str) -> None:
    text = preset_path(name).read_text()
    assert text.startswith("# ")
    assert max(map(len, text.split("\n"))) <= 110
    if name == "base":
        return
    last = Policy.load(name).rules[-1]
    assert last.label == f"{name}.toml rule {last.number} (any)"
    assert Policy.load(name).name == f"{name}.toml"


def test_presets_keep_the_same_things_high() -> None:
    first, *others = (Policy.load(name).rules[:4] for name in QUANTIZED)
    assert all(rules == first for rules in others)
    assert [rule.recipe for rule in first] == ["routers", "heads", "attention", "adapters"]
    assert {rule.source for rule in first} == {"base.toml"}


def test_a_recipe_name_means_the_same_in_every_preset() -> None:
    meanings: dict[str, object] = {}
    for name in presets():
        for recipe in Policy.load(name).recipes:
            assert meanings.setdefault(recipe.name, recipe) == recipe
    assert meanings["w4a4g4"].treatments == meanings["nvfp4"].treatments  # type: ignore[attr-defined]
