"""Hot channels against the formula of arXiv 2602.02047: what a product reads of them is exact."""

from __future__ import annotations

import pytest
import torch

from metis_compile.conditioning import Channels, prepare, product, split
from metis_compile.numerics import QuantSpec, fake_quantize

SPEC = QuantSpec.make("nvfp4")
HOT = [3, 17, 40]


def values() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(50, 48)
    x[:, HOT] *= 20
    return x, torch.randn(24, 48)


def test_the_channels_of_the_largest_mean_magnitude_are_kept() -> None:
    x, _ = values()
    x[7, 5] = 300.0  # one large element makes no hot channel
    for take in ("error", "whole"):
        residual, left, right = split(x, "channels", share=0.07, take=take)
        assert sorted(right.argmax(1).tolist()) == HOT
        assert torch.equal(right.sum(1), torch.ones(3))
        assert torch.equal(residual + left @ right, x)
    assert (residual[:, HOT] == 0).all()
    assert split(x[:, :4], "channels", share=0.01).right.shape == (1, 4)


@pytest.mark.parametrize("take", ["error", "whole"])
@pytest.mark.parametrize("partner", ["high", "residual"])
def test_what_a_product_reads(take: str, partner: str) -> None:
    """x Y^T ~= Q(R) Q(Y)^T + (x - Q(R))[:, I] P(Y)[:, I]^T, and without `error` R = x without I."""
    x, y = values()
    how = Channels(share=0.07, take=take, partner=partner)
    a = prepare(x, axis=1, spec=SPEC, split=how.split(x), partner=partner, compensate=how)
    got = product(a, prepare(y, axis=1, spec=SPEC))
    r = x.clone()
    if take == "whole":
        r[:, HOT] = 0
    q, qy = fake_quantize(r, SPEC, 1), fake_quantize(y, SPEC, 1)
    other = y if partner == "high" else qy
    expected = q @ qy.mT + (x - q)[:, HOT] @ other[:, HOT].mT
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0}, "share must be a number above 0 and below 1, got 0"),
        ({"share": True}, "share must be a number"),
        ({"take": "half"}, "take must be one of 'error', 'whole', got 'half'"),
        ({"partner": "low"}, "partner must be one of"),
    ],
)
def test_mistakes(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Channels(**settings)  # type: ignore[arg-type]
