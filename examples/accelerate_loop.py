"""A training loop with Accelerate in NVFP4: `python examples/accelerate_loop.py`.

Under the launcher: `accelerate launch examples/accelerate_loop.py`.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin
from torch import nn

import metis_compile.integrations.accelerate  # noqa: F401  # the one line: Accelerate knows "metis" from here on

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--policy", default="nvfp4")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--width", type=int, default=256)
options = parser.parse_args()

torch.manual_seed(0)
plugin = TorchDynamoPlugin(backend="metis", options={"policy": options.policy})  # or dynamo_backend="metis" below
accelerator = Accelerator(dynamo_plugin=plugin, cpu=not torch.cuda.is_available())

model = nn.Sequential(nn.Linear(64, options.width), nn.GELU(), nn.Linear(options.width, 64))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
x = torch.randn(512, 64)
data = torch.utils.data.TensorDataset(x, torch.sin(3 * x))
loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

step = 0
while step < options.steps:
    for inputs, targets in loader:
        loss = nn.functional.mse_loss(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 10 == 0 or step == options.steps:
            accelerator.print(f"step {step}  loss {loss.item():.4f}")
        if step == options.steps:
            break
