"""Models and policies small enough to compile in seconds, shared by the tests of the backend and the passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metis_compile import Policy

NEAREST = "nvfp4 1x16 nearest"

# every product with a weight, every operand to nearest: what the compiled model draws is then no question
NEAREST_POLICY = Policy.from_toml(
    """
    [recipe.nearest]
    weight = { format = "nvfp4" }
    activation = { format = "nvfp4" }
    gradient = { format = "nvfp4" }
    [[rule]]
    has_weight = true
    recipe = "nearest"
    """,
    name="nearest.toml",
)

# the same with stochastic gradients
STOCHASTIC_POLICY = Policy.from_toml(
    """
    [recipe.stochastic]
    weight = { format = "nvfp4" }
    activation = { format = "nvfp4" }
    gradient = { format = "nvfp4", rounding = "stochastic" }
    [[rule]]
    has_weight = true
    recipe = "stochastic"
    """,
    name="stochastic.toml",
)


class MLP(nn.Module):
    """Two linears with a GELU between: [..., 32] -> [..., 48] -> [..., 32]. The tokens need not fill their blocks."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(32, 48)
        self.down = nn.Linear(48, 32, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.dropout(F.gelu(self.up(x)), self.dropout, self.training))


class Twice(nn.Module):
    """The same MLP twice, its second call perhaps checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.mlp, self.reentrant = MLP(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        return self.mlp(x) if self.reentrant is None else checkpoint(self.mlp, x, use_reentrant=self.reentrant)


class Attention(nn.Module):
    """q, k and v of one input, two heads, and the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32, bias=False) for _ in range(3))
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 16)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = torch.sigmoid(q @ k.transpose(-1, -2) / 4)  # a softmax would become Inductor's fused attention
        return self.out((scores @ v).transpose(1, 2).flatten(2))


class Tied(nn.Module):
    """An embedding whose weight is also the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 32)
        self.hidden = nn.Linear(32, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.hidden(self.embedding(tokens))), self.embedding.weight)
