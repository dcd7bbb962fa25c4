"""What the gradient of a quantized weight is multiplied by, in place of 1 (the straight-through estimator).

"dge", the differentiable gradient estimator of arXiv 2501.17116: rounding is taken for a smooth function f that is as
steep as a power of 1/k halfway between two neighbours of the grid, q and q + d, and level next to them:

    f(x)  = q + (d / 2) (1 + sign(u) |u|^(1/k)),    u = 2 (x - q) / d - 1
    f'(x) = (1 / k) |u|^(1/k - 1), at most 3                                 k = 5

x is the weight as it is rounded, under its block's scale, of which no derivative is taken. With dL/dW_q from wgrad,
dL/dW = dL/dW_q * f'(W), element by element. The constants are those of the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.numerics.blocks import BlockLayout
from metis_compile.numerics.elements import grid_step, round_magnitude
from metis_compile.numerics.formats import QuantSpec
from metis_compile.numerics.quantize import scaling_of

ESTIMATORS = ("dge",)
STEEPNESS = 5  # k
LARGEST = 3.0


def dge_factor(weight: Tensor, spec: QuantSpec, axis: int) -> Tensor:
    """f'(W), float32 of the weight's shape, for blocks along `axis`; NaN where a weight is."""
    layout = BlockLayout.of(spec, weight.dim(), axis)
    x = (weight.detach() if weight.requires_grad else weight).to(torch.float32)
    scales = scaling_of(x, layout, spec)
    magnitude = torch.abs(layout.split(x) * layout.spread(scales.multiplier, x.shape))
    return layout.join(dge_derivative(magnitude, spec), x.shape)


def dge_derivative(magnitude: Tensor, spec: QuantSpec) -> Tensor:
    """f'(x) of fp32 magnitudes in units of the element's grid."""
    inside = torch.clamp(magnitude, max=spec.element.max)
    step = grid_step(inside, spec.element)
    nearest = round_magnitude(inside, spec.element)
    below = torch.where(nearest > inside, nearest - step, nearest)
    distance = torch.abs(2 * (inside - below) / step - 1)  # 1 next to a neighbour, 0 halfway
    return torch.clamp(distance ** (1 / STEEPNESS - 1) / STEEPNESS, max=LARGEST)
