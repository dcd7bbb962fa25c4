"""``benchmarks/wgrad_forms.py`` against the same done by hand."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metis_compile
from metis_compile.compare.gemm import Side
from metis_compile.policy import Treatment

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "wgrad_forms.py"))
TOKENS, FEATURES, OUT, K = 256, 96, 64, 8
X = Treatment(format="nvfp4", split={"kind": "spectral", "rank": K, "compensate": True})
G = Treatment(format="nvfp4")
SPLIT_G = Treatment(format="nvfp4", split={"kind": "spectral", "rank": 4})


def q(x: Tensor, axis: int = 0) -> Tensor:
    return metis_compile.quantize(x, "nvfp4", axis).dequantize()


def off(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def tensors() -> tuple[Tensor, Tensor]:
    """An activation with dominant directions, and a gradient that has them too, so that their errors show."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = normal(TOKENS, K)
    x = normal(TOKENS, FEATURES) + 4 * tokens @ normal(K, FEATURES)
    return x, normal(TOKENS, OUT) + tokens @ normal(K, OUT)


def sides(tensors: tuple[Tensor, Tensor], gradient: Treatment) -> tuple[Side, Side]:
    x, g = tensors
    return Side("activation", 0, X, x, x, "wgrad"), Side("gradient", 0, gradient, g, g, "wgrad")


def test_forms_are_as_by_hand(tensors: Any) -> None:
    x, g = tensors
    activation, gradient = sides(tensors, G)
    found = SCRIPT["measure"](activation, gradient)
    r, left, f = activation.split
    torch.testing.assert_close(r + left @ f, x)
    exact = g.T @ x
    more = left + (r - q(r)) @ f.T
    forward = (left + (r - q(r, 1)) @ f.T).bfloat16().float()
    by_hand = {
        "ours": q(r) + left @ f,
        "direct": q(x),
        "residual": q(r),
        "compensated": q(r) + more.bfloat16().float() @ f,
        "compensated high": q(r) + more @ f,
        "of forward": q(r) + forward @ f,
        "bfloat16": x.bfloat16().float(),
    }
    assert set(found) == set(by_hand)
    for name, read in by_hand.items():
        assert found[name]["error"] == pytest.approx(off(g.T @ read, exact), rel=1e-3), name
    both = q(g).T @ q(r) + g.T @ left @ f  # the thin product reads G as it is
    assert found["ours"]["error_with_g"] == pytest.approx(off(both, exact), rel=1e-3)
    assert found["direct"]["error_with_g"] == pytest.approx(off(q(g).T @ q(x), exact), rel=1e-3)
    assert found["bfloat16"]["error_with_g"] == pytest.approx(off(q(g).T @ x.bfloat16().float(), exact), rel=1e-3)


def test_a_compensated_factor_leaves_nothing_along_the_directions(tensors: Any) -> None:
    found = SCRIPT["measure"](*sides(tensors, G))
    assert found["compensated high"]["along"] < 0.02 * found["ours"]["along"]
    assert found["compensated high"]["error"] < found["ours"]["error"]
    # its rounding is not folded into the residual, as that of L is
    assert found["compensated"]["along"] > 10 * found["compensated high"]["along"]


def test_bits(tensors: Any) -> None:
    found = SCRIPT["measure"](*sides(tensors, SPLIT_G))
    elements = TOKENS * FEATURES
    packed = 4 + 8 / 16 + 32 / elements
    thin = 16 * K * (TOKENS + FEATURES) / elements
    bits = {name: values["bits"] for name, values in found.items()}
    assert bits == pytest.approx(
        {
            "ours": packed + thin,
            "direct": packed,
            "residual": packed,
            "compensated": packed + thin,
            "compensated high": packed + thin + 16 * K / FEATURES,
            "of forward": packed + thin,
            "both": 2 * packed + thin,
            "bfloat16 for G": packed + thin + 16,
            "bfloat16": 16,
        }
    )


def test_what_the_thin_product_of_a_split_gradient_reads(tensors: Any) -> None:
    x, g = tensors
    activation, gradient = sides(tensors, SPLIT_G)
    found = SCRIPT["measure"](activation, gradient)
    r, left, f = activation.split
    s, thin, directions = gradient.split
    exact = g.T @ x
    for name, read in {"ours": q(r) + left @ f, "both": q(x), "bfloat16 for G": x.bfloat16().float()}.items():
        rest = q(s).T @ q(r) + (s.T @ left) @ f  # the residual of G as it is
        assert found[name]["error_with_g"] == pytest.approx(off(rest + directions.T @ (thin.T @ read), exact), rel=1e-3)


def test_means_are_geometric_and_a_table_is_made_of_them(tensors: Any) -> None:
    one = {"ours": {"bits": 4.0, "error": 0.1, "along": 0.001, "error_with_g": 0.2}}
    other = {"ours": {"bits": 6.0, "error": 0.4, "along": 0.004, "error_with_g": 0.8}}
    found = SCRIPT["means"]([one, other])
    assert found["ours"] == pytest.approx({"bits": 5.0, "error": 0.2, "along": 0.002, "error_with_g": 0.4})
    assert SCRIPT["table"](found).splitlines()[2] == "| Q(R) and L | 5.00 | 0.2000 | 0.00200 | 0.4000 |"
