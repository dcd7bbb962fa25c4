"""Blocks of the shape of a Llama of 8B parameters, in plain PyTorch: what `metis bench` measures beside the GPT.

Of width 4096 an MLP of 14336, 32 heads of 128 features, and 8 heads of keys and values, each shared by four of
queries; RMSNorm before both halves, SwiGLU, rotary positions, no biases. Other widths keep the proportions. Around the
blocks are an embedding of bytes and a head for them, 2 million parameters of 220 where there is one block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metis_compile.train.model import Shape

__all__ = ["LlamaBlocks", "hidden_width", "key_value_heads"]

EPS = 1e-5
THETA = 500_000.0  # of the rotary positions' wavelengths


def hidden_width(width: int) -> int:
    """Features in the MLP: 7/2 of the width."""
    return 7 * width // 2


def key_value_heads(heads: int) -> int:
    """A quarter of the heads of queries, where they divide so."""
    return heads // 4 if heads % 4 == 0 else heads


def rotary(context: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [context, size / 2]: of position times THETA^(-2 i / size)."""
    frequencies = THETA ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[..., time, size] with features i and i + size / 2 turned as a pair by the position's angle."""
    low, high = x.float().chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention whose keys and values several heads share, [batch, time, width] -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        size, shared = width // heads, key_value_heads(heads)
        self.heads, self.shared = heads, shared
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, shared * size, bias=False)
        self.v = nn.Linear(width, shared * size, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def split(y: Tensor, heads: int) -> Tensor:
            return y.unflatten(-1, (heads, -1)).transpose(1, 2)

        q, k, v = split(self.q(x), self.heads), split(self.k(x), self.shared), split(self.v(x), self.shared)
        each = self.heads // self.shared
        k, v = turned(k, cos, sin).repeat_interleave(each, 1), v.repeat_interleave(each, 1)
        y = F.scaled_dot_product_attention(turned(q, cos, sin), k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU, [..., width] -> [..., width]. By Llama's names: the presets take what is named `gate` for a router."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden_width(width), bias=False)
        self.up_proj = nn.Linear(width, hidden_width(width), bias=False)
        self.down_proj = nn.Linear(hidden_width(width), width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """[batch, time, width] -> [batch, time, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.mlp_norm = nn.RMSNorm(width, eps=EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class LlamaBlocks(nn.Module):
    """Token ids int64 [batch, time] -> logits [batch, time, vocabulary]; time <= ``shape.context``."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.token = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=EPS)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        for name, table in zip(("cos", "sin"), rotary(shape.context, shape.width // shape.heads), strict=True):
            self.register_buffer(name, table, persistent=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        x = self.token(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:time], self.sin[:time])
        return self.lm_head(self.norm(x))
