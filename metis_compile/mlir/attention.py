"""Fused attention on the CPU as products: torch's own operators for it are opaque to other compilers.

    P = softmax(scale Q K^T + mask),  out = P V,  lse the logarithm of the sums that softmax divides by
    dV = P^T dO,   dS = P (dO V^T - sum(dO out)),   dQ = scale dS K,   dK = scale dS^T Q          (FlashAttention-2)

All in float32, as the operators do for narrower dtypes inside, and rounded at the end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> list[Tensor]:
    """[batch, heads, tokens, features] -> [out as q, lse [batch, heads, tokens] float32]."""
    scores = _scores(q, k, mask, causal, scale)
    largest = torch.amax(scores, dim=-1, keepdim=True)
    exp = torch.exp(scores - largest)
    total = torch.sum(exp, dim=-1, keepdim=True)
    out = torch.matmul(exp / total, v.to(torch.float32))
    return [out.to(q.dtype), (torch.log(total) + largest).squeeze(-1)]


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
) -> list[Tensor]:
    """The gradients of q, k and v, given that of out."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    grad, out = grad.to(torch.float32), out.to(torch.float32)
    p = torch.exp(_scores(q, k, mask, causal, scale) - lse.unsqueeze(-1))
    dv = torch.matmul(p.mT, grad)
    ds = p * (torch.matmul(grad, v.to(torch.float32).mT) - torch.sum(grad * out, dim=-1, keepdim=True))
    dq = torch.matmul(ds, k.to(torch.float32)) * factor
    dk = torch.matmul(ds.mT, q.to(torch.float32)) * factor
    return [dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)]


def without_dropout(node: fx.Node) -> bool:
    """Whether this is one of the two, and drops nothing out."""
    if node.target not in (ATTENTION, ATTENTION_BACKWARD):
        return False
    place = 3 if node.target is ATTENTION else 6
    return len(node.args) <= place or not node.args[place]


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = torch.matmul(q.to(torch.float32), k.to(torch.float32).mT) * factor
    if causal:
        rows = torch.arange(q.shape[-2], device=q.device).unsqueeze(1)
        scores = torch.where(torch.arange(k.shape[-2], device=q.device) <= rows, scores, -torch.inf)
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores
