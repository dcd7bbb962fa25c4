"""Errors of single products, against the same done by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metis_compile
from metis_compile.compare.gemm import Snapshot, gemm_errors, take, treatments_of

TOKENS = torch.arange(96).reshape(2, 48) % 50


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, 32)
        self.up = nn.Linear(32, 48)
        self.lm_head = nn.Linear(48, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(F.gelu(self.up(self.token(tokens) + 1.5)))


@pytest.fixture(scope="module")
def taken() -> tuple[nn.Module, dict[str, Snapshot]]:
    torch.manual_seed(0)
    model = Model()
    return model, take(model, TOKENS, TOKENS.roll(-1, 1))


def errors_of(policy: Any, taken: Any) -> dict[str, Any]:
    model, now = taken
    found = gemm_errors(policy, model, torch.zeros_like(TOKENS), now, now)
    assert {e.module for e in found} == {"up"}  # the head stays as it is
    return {e.gemm: e for e in found}


def off(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())


def test_tensors_are_those_of_the_model(taken: Any) -> None:
    model, now = taken
    assert {name: (s.activation.shape[1], s.gradient.shape[1]) for name, s in now.items()} == {
        "up": (32, 48),
        "lm_head": (48, 256),
    }
    up = now["up"]
    assert torch.equal(up.activation, (model.token(TOKENS) + 1.5).flatten(0, 1))
    loss = F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten())
    (expected,) = torch.autograd.grad(loss, [model.up.weight])
    torch.testing.assert_close(up.gradient.T @ up.activation, expected)
    assert model.up.weight.grad is None


def test_direct_quantization(taken: Any) -> None:
    up = taken[1]["up"]
    found = errors_of("mxfp8", taken)

    def q(x: Tensor, axis: int) -> Tensor:
        return metis_compile.quantize(x, "mxfp8", axis).dequantize()

    x, w, g = up.activation, up.weight, up.gradient
    assert found["fprop"].error == pytest.approx(off(q(x, 1) @ q(w, 1).T, x @ w.T), rel=1e-3)
    assert found["dgrad"].error == pytest.approx(off(q(g, 1) @ q(w, 0), g @ w), rel=1e-3)
    assert found["wgrad"].error == pytest.approx(off(q(g, 0).T @ q(x, 0), g.T @ x), rel=1e-3)
    assert found["fprop"].left_error == pytest.approx(off(q(x, 1) @ w.T, x @ w.T), rel=1e-3)
    assert found["wgrad"].right_error == pytest.approx(off(g.T @ q(x, 0), g.T @ x), rel=1e-3)
    assert (found["dgrad"].left, found["dgrad"].right) == ("gradient", "weight")


def test_a_mean_split_helps_where_there_is_a_mean(taken: Any) -> None:
    direct, split = errors_of("nvfp4", taken), errors_of("averis", taken)
    assert split["fprop"].left_error < 0.6 * direct["fprop"].left_error
    assert split["dgrad"].error == pytest.approx(direct["dgrad"].error)


def test_a_kept_basis_and_transforms(taken: Any) -> None:
    direct = errors_of("nvfp4", taken)
    for policy in ("metis", "best", "metis-paper", "nvidia"):
        found = errors_of(policy, taken)
        assert all(0 < e.error < 1 for e in found.values()), policy
    assert errors_of("best", taken)["fprop"].error < 0.6 * direct["fprop"].error


def test_an_operand_left_high_has_no_error_of_its_own(taken: Any, tmp_path: Path) -> None:
    policy = tmp_path / "mine.toml"
    policy.write_text("""
        [recipe.mine]
        weight = "mxfp8"
        activation = "high"
        gradient = "high"
        [[rule]]
        module = "up"
        recipe = "mine"
    """)
    found = errors_of(str(policy), taken)
    assert set(found) == {"fprop", "dgrad"}
    assert found["fprop"].left_error is None
    assert found["fprop"].error == found["fprop"].right_error


@pytest.mark.parametrize("policy", ["nvidia", "best", "metis-paper"])
def test_errors_of_operands_alone_add_up(taken: Any, policy: str) -> None:
    # also under a transform, beside a split and where factors are rounded and not folded
    for error in errors_of(policy, taken).values():
        assert error.error == pytest.approx(math.hypot(error.left_error, error.right_error), rel=0.25)


def test_a_split_is_settled_as_in_the_graph(taken: Any, tmp_path: Path) -> None:
    policy = tmp_path / "mine.toml"
    policy.write_text("""
        [recipe.mine]
        weight = "high"
        gradient = "high"
        activation = { format = "nvfp4", split = { kind = "spectral", rank = 8, track_share = 0.1, sample_least = 4 } }
        [[rule]]
        module = "up"
        recipe = "mine"
    """)
    (treatments,) = [t for _, gemm, t in treatments_of(str(policy), taken[0], TOKENS) if gemm == "fprop"]
    assert list(treatments) == ["activation"]
    assert treatments["activation"].split.track_share == pytest.approx(4 * 8 / 96)  # rows enough to follow 8


def mine(folder: Path, recipe: str, rule: str = "") -> str:
    policy = folder / "mine.toml"
    policy.write_text(f"""
        [recipe.mine]
        {recipe}
        [[rule]]
        module = "up"
        recipe = "mine"
        {rule}
    """)
    return str(policy)


SIGNED = ', hadamard = "fixed"'
SPLIT = """weight = "high"
        gradient = "high"
        activation = {{ format = "nvfp4", split = {{ kind = "spectral", rank = 2, {} }} }}"""


def test_a_kept_basis_has_followed_its_tensor(taken: Any, tmp_path: Path) -> None:
    """Made of what the tensor was, it holds after a power step what the tensor is."""
    model, now = taken
    up = now["up"]
    x = 0.1 * up.activation + torch.randn(96, 2) @ torch.randn(2, 32)
    was = {"up": replace(up, activation=torch.randn(96, 32))}
    is_now = {"up": replace(up, activation=x)}
    policy = mine(tmp_path, SPLIT.format("track = true"))
    followed, known = (
        next(e.error for e in gemm_errors(policy, model, torch.zeros_like(TOKENS), before, is_now) if e.gemm == "fprop")
        for before in (was, is_now)
    )
    assert known < followed < 1.5 * known
    assert known < 0.3 * errors_of("nvfp4", (model, is_now))["fprop"].left_error


def test_compensation_is_for_fprop_alone(taken: Any, tmp_path: Path) -> None:
    """Backward has the packed residual and the factors as they were split off."""
    plain = errors_of(mine(tmp_path, SPLIT.format("compensate = false")), taken)
    compensated = errors_of(mine(tmp_path, SPLIT.format("compensate = true")), taken)
    assert compensated["fprop"].error < 0.99 * plain["fprop"].error
    assert compensated["wgrad"].error == plain["wgrad"].error


def test_a_transform_is_done(taken: Any, tmp_path: Path) -> None:
    model, now = taken
    x = now["up"].activation.clone()
    x[3] *= 100.0  # a token that a transform along the tokens spreads
    loud = {"up": replace(now["up"], activation=x)}
    recipe = """weight = "high"
        gradient = {{ format = "nvfp4"{} }}
        activation = {{ format = "nvfp4"{} }}"""
    left, done = (
        gemm_errors(policy, model, torch.zeros_like(TOKENS), loud, loud)[0].error
        for policy in (mine(tmp_path, recipe.format(*how), 'gemm = "wgrad"') for how in [("",) * 2, (SIGNED,) * 2])
    )
    assert abs(done - left) > 0.05 * left


def test_operands_are_rounded_by_numbers_of_their_own(taken: Any, tmp_path: Path) -> None:
    """Were they the same, one tensor as both operands would err by the same on either side."""
    model, now = taken
    both = {"up": replace(now["up"], gradient=now["up"].activation)}
    how = '{ format = "nvfp4", rounding = "stochastic" }'
    policy = mine(tmp_path, f"weight = {how}\n        gradient = {how}\n        activation = {how}", 'gemm = "wgrad"')
    (wgrad,) = gemm_errors(policy, model, torch.zeros_like(TOKENS), both, both)
    assert wgrad.left_error != pytest.approx(wgrad.right_error, rel=1e-4)
