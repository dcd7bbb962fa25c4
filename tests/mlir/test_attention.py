import math

import pytest
import torch
from torch import Tensor

from metis_compile.mlir.attention import ATTENTION, ATTENTION_BACKWARD, attention, attention_backward

MASKS = {
    "none": (None, False, None),
    "causal": (None, True, 0.3),
    "added": (torch.linspace(-3, 1, 12 * 12).reshape(12, 12), False, None),
}


@pytest.mark.parametrize("mask", MASKS)
def test_forward_and_backward_are_those_of_the_fused_operators(mask: str) -> None:
    torch.manual_seed(0)
    added, causal, scale = MASKS[mask]
    q, k, v, grad = (torch.randn(2, 3, 12, 16) for _ in range(4))
    options = {"attn_mask": added, "scale": scale}
    out, lse = ATTENTION(q, k, v, 0.0, causal, **options)
    wanted: list[Tensor] = [out, lse, *ATTENTION_BACKWARD(grad, q, k, v, out, lse, 0.0, causal, **options)]
    given = (added, causal, scale)
    got = [*attention(q, k, v, *given), *attention_backward(grad, q, k, v, out, lse, *given)]
    for ours, theirs in zip(got, wanted, strict=True):
        # float32 sums of 12 and 16 in another order, and another exp
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * math.sqrt(16))
