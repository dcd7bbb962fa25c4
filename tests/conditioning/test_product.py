"""GEMMs of conditioned operands: the plain product without quantization, the papers' formulas with it."""

from __future__ import annotations

import pytest
import torch
from anisotropic import anisotropic
from hypothesis import given, settings
from hypothesis import strategies as st

from metis_compile.conditioning import Chain, Mean, Spectral, fixed_signs, hadamard, prepare, product
from metis_compile.conditioning.product import Prepared
from metis_compile.numerics import QuantSpec, fake_quantize

SEED = torch.tensor([3])
PARTNERS = ["high", "residual"]
KINDS = {
    "none": lambda partner: None,
    "mean": lambda partner: Mean(partner=partner),
    "spectral": lambda partner: Spectral(rank=3, partner=partner),
    "chain": lambda partner: Chain(steps=(Mean(partner=partner), Spectral(rank=2, partner=partner))),
}
AXES = {"fprop": (1, 1), "dgrad": (1, 0), "wgrad": (0, 0)}
Q = QuantSpec.make("nvfp4")


def operand(free: int, contracted: int, axis: int, seed: int) -> torch.Tensor:
    x = anisotropic(free, contracted, seed)
    return x if axis == 1 else x.T.contiguous()


def prepared(
    x: torch.Tensor, axis: int, how: Mean | Spectral | Chain | None, spec: QuantSpec | None, turn: bool = False
) -> Prepared:
    split = None if how is None else how.split(x, axis=axis, seed=SEED)
    signs = fixed_signs() if turn else None
    return prepare(x, axis=axis, spec=spec, split=split, partner="high" if how is None else how.partner, signs=signs)


@pytest.mark.parametrize("gemm", AXES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    a=st.sampled_from(sorted(KINDS)),
    b=st.sampled_from(sorted(KINDS)),
    partners=st.tuples(st.sampled_from(PARTNERS), st.sampled_from(PARTNERS)),
    turn=st.booleans(),
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    k=st.integers(1, 70),
)
def test_without_quantization_it_is_the_plain_product(
    gemm: str, a: str, b: str, partners: tuple[str, str], turn: bool, m: int, n: int, k: int
) -> None:
    axes = AXES[gemm]
    x, y = operand(m, k, axes[0], 1), operand(n, k, axes[1], 2)
    got = product(
        prepared(x, axes[0], KINDS[a](partners[0]), None, turn), prepared(y, axes[1], KINDS[b](partners[1]), None, turn)
    )
    want = (x if axes[0] else x.T) @ (y.T if axes[1] else y)
    assert got.shape == (m, n)
    assert (got - want).abs().max() <= 1e-4 * max(1.0, float(want.abs().max()))


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """X [t, in], W [out, in], G [t, out]."""
    return anisotropic(50, 40, 1), anisotropic(30, 40, 2, mean=0, dominant=1), anisotropic(50, 30, 3)


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return bool((got - want).abs().max() <= 1e-5 * want.abs().max())


def test_averis_as_published(layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, w, g = layer
    mean = Mean(factors="nvfp4", fold=False, partner="residual")
    mu_x, mu_g = (fake_quantize(t.mean(0, keepdim=True), Q, 1) for t in (x, g))
    x_r, g_r = x - x.mean(0), g - g.mean(0)

    y = product(prepared(x, 1, mean, Q), prepared(w, 1, None, Q))
    assert close(y, fake_quantize(x_r, Q, 1) @ fake_quantize(w, Q, 1).T + mu_x @ fake_quantize(w, Q, 1).T)
    dx = product(prepared(g, 1, mean, Q), prepared(w, 0, None, Q))
    assert close(dx, fake_quantize(g_r, Q, 1) @ fake_quantize(w, Q, 0) + mu_g @ fake_quantize(w, Q, 0))
    dw = product(prepared(g, 0, mean, Q), prepared(x, 0, mean, Q))
    qg, qx = fake_quantize(g_r, Q, 0), fake_quantize(x_r, Q, 0)
    a, b, t = qx.sum(0), qg.sum(0), len(x)
    want = qg.T @ qx + torch.outer(mu_g[0], a) + torch.outer(b, mu_x[0]) + t * torch.outer(mu_g[0], mu_x[0])
    assert close(dw, want)


def test_averis_as_built(layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, w, g = layer
    mean = Mean()
    mu = x.mean(0, keepdim=True).to(torch.bfloat16).float()
    y = product(prepared(x, 1, mean, Q), prepared(w, 1, None, Q))
    assert close(y, fake_quantize(x - mu, Q, 1) @ fake_quantize(w, Q, 1).T + mu @ w.T)
    dw = product(prepared(g, 0, None, Q), prepared(x, 0, mean, Q))
    want = fake_quantize(g, Q, 0).T @ fake_quantize(x - mu, Q, 0) + torch.outer(g.sum(0), mu[0])
    assert close(dw, want)


def test_metis_as_published(layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, w, g = layer
    how = Spectral(rank=2, factors="nvfp4", fold=False, partner="residual")

    def parts(m: torch.Tensor, axis: int) -> torch.Tensor:
        """Q(A_k) La Q(B_k^T) + Q(M_R)"""
        basis = how.fresh_basis(m, SEED)
        left = m @ basis.T
        norms = left.norm(dim=0)
        thin = (fake_quantize(left / norms, Q, axis) * norms) @ fake_quantize(basis, Q, axis)
        return thin + fake_quantize(m - left @ basis, Q, axis)

    assert close(product(prepared(x, 1, how, Q), prepared(w, 1, how, Q)), parts(x, 1) @ parts(w, 1).T)
    assert close(product(prepared(g, 1, how, Q), prepared(w, 0, how, Q)), parts(g, 1) @ parts(w, 0))
    assert close(product(prepared(g, 0, how, Q), prepared(x, 0, how, Q)), parts(g, 0).T @ parts(x, 0))


def test_metis_as_built(layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, w, g = layer
    how = Spectral(rank=2)

    def thin(m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        basis = how.fresh_basis(m, SEED)
        return (m @ basis.T).to(torch.bfloat16).float(), basis.to(torch.bfloat16).float()

    (lx, fx), (lg, fg) = thin(x), thin(g)
    y = product(prepared(x, 1, how, Q), prepared(w, 1, None, Q))
    assert close(y, fake_quantize(x - lx @ fx, Q, 1) @ fake_quantize(w, Q, 1).T + lx @ (fx @ w.T))
    dw = product(prepared(g, 0, how, Q), prepared(x, 0, how, Q))
    xr, gr = x - lx @ fx, g - lg @ fg
    want = fake_quantize(gr, Q, 0).T @ fake_quantize(xr, Q, 0) + fg.T @ (lg.T @ x) + (gr.T @ lx) @ fx
    assert close(dw, want)


def test_a_partner_in_e4m3_has_a_scale_per_row(layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, w, _ = layer
    how = Mean(partner="e4m3 row")
    mu = x.mean(0, keepdim=True).to(torch.bfloat16).float()
    y = product(prepared(x, 1, how, Q), prepared(w, 1, None, Q))
    partner = fake_quantize(w, QuantSpec.make("fp8", "row"), 1)
    assert close(y, fake_quantize(x - mu, Q, 1) @ fake_quantize(w, Q, 1).T + mu @ partner.T)


def test_a_hadamard_transform_is_of_the_residuals(layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, _, g = layer
    how = Mean()
    mu = x.mean(0, keepdim=True).to(torch.bfloat16).float()
    dw = product(prepared(g, 0, None, Q, turn=True), prepared(x, 0, how, Q, turn=True))
    turned = [fake_quantize(hadamard(t, 0, fixed_signs()), Q, 0) for t in (g, x - mu)]
    assert close(dw, turned[0].T @ turned[1] + torch.outer(g.sum(0), mu[0]))


@pytest.mark.parametrize("gemm", AXES)
def test_splits_pay_where_factors_are_folded_and_partners_high(gemm: str) -> None:
    axes = AXES[gemm]
    # A weight is not anisotropic: it is the second operand of fprop and dgrad.
    x, y = operand(256, 192, axes[0], 1), operand(128, 192, axes[1], 2)
    if gemm != "wgrad":
        y = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    want = (x if axes[0] else x.T) @ (y.T if axes[1] else y)

    def error(how: Mean | Spectral | Chain | None) -> float:
        other = how if gemm == "wgrad" else None
        return float((product(prepared(x, axes[0], how, Q), prepared(y, axes[1], other, Q)) - want).norm())

    direct = error(None)
    assert error(Spectral(rank=6)) < 0.7 * direct
    assert error(Spectral(rank=6)) < error(Spectral(rank=6, factors="nvfp4")) < 0.75 * direct
    assert error(Spectral(rank=6, partner="residual")) > 1.1 * error(Spectral(rank=6))
    assert error(Spectral(rank=6, factors="nvfp4", fold=False)) > 1.2 * error(Spectral(rank=6, factors="nvfp4"))
