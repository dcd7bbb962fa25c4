from collections.abc import Callable
from pathlib import Path

import pytest

from metis_compile.policy import Policy, Query

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "policies").glob("*.toml"))
MIXED = next(path for path in EXAMPLES if path.name == "mixed.toml")

W4 = {
    "weight": "nvfp4 16x16 nearest",
    "activation": "nvfp4 1x16 nearest",
    "gradient": "nvfp4 1x16 stochastic round_up",
}
FP8 = {"weight": "fp8 tensor nearest", "activation": "fp8 tensor nearest", "gradient": "fp8_e5m2 tensor nearest"}
MXFP8 = {
    "weight": "mxfp8 1x32 nearest floor",
    "activation": "mxfp8 1x32 nearest floor",
    "gradient": "mxfp8_e5m2 1x32 nearest floor",
}
OPERANDS_OF = {
    "fprop": ("activation", "weight"),
    "dgrad": ("gradient", "weight"),
    "wgrad": ("gradient", "activation"),
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads_and_round_trips(path: Path) -> None:
    policy = Policy.load(path)
    assert Policy.from_toml(policy.to_toml()) == policy


@pytest.mark.parametrize("gemm", OPERANDS_OF)
@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("mlp.gate_proj", {"fprop": W4, "dgrad": W4, "wgrad": W4}),
        ("mlp.up_proj", {"fprop": W4, "dgrad": W4, "wgrad": W4}),
        ("mlp.down_proj", {"fprop": W4, "dgrad": MXFP8, "wgrad": FP8}),
        ("self_attn.q_proj", {"fprop": FP8, "dgrad": FP8, "wgrad": FP8}),
        ("self_attn.v_proj", dict.fromkeys(OPERANDS_OF, FP8 | {"weight": "high"})),
    ],
)
def test_w4a4g4_and_fp8_in_one_model_and_a_format_for_each_gemm(
    module: str, expected: dict[str, dict[str, str]], gemm: str, query: Callable[..., Query]
) -> None:
    policy = Policy.load(MIXED)
    for operand in OPERANDS_OF[gemm]:
        asked = query(module=f"model.layers.2.{module}", block=(2, 8), gemm=gemm, operand=operand)
        assert str(policy.decide(asked).treatment) == expected[gemm][operand]


def test_what_the_mixed_policy_leaves_high(query: Callable[..., Query]) -> None:
    policy = Policy.load(MIXED)
    for changes, label in [
        ({"module": "model.layers.6.mlp.up_proj", "block": (6, 8)}, "mixed.toml rule 1 (blocks=last 2)"),
        ({"k": 31}, "mixed.toml rule 2 (when=k < 32)"),
        ({"module": "lm_head", "block": None, "kind": "head"}, "base.toml rule 2 ("),
        ({"module": "model.layers.0.self_attn", "has_weight": False}, "base.toml rule 3 (has_weight=false)"),
    ]:
        decision = policy.decide(query(**changes))
        assert decision.treatment.format == "high"
        assert decision.rule.startswith(label)
