"""Two linears that read one tensor, and rules under which the first reads it quantized in wgrad alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# `first` and `second` are recipes of the policy
RULES = """
[[rule]]
module = "up"
gemm = "wgrad"
recipe = "first"
[[rule]]
module = "up"
recipe = "high"
[[rule]]
gemm = ["fprop", "wgrad"]
recipe = "second"
"""


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return self.up(x) * self.down(x)
