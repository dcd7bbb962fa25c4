"""A training loop with one word changed: the backend. Run it as ``python examples/train_loop.py``."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
model = torch.compile(model, backend="metis")  # was: torch.compile(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

x = torch.randn(512, 64)
y = torch.sin(3 * x)
for step in range(60):
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        print(f"step {step + 1}  loss {loss.item():.4f}")
