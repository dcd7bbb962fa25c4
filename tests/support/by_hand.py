"""Eager training with linears quantized by hand: what a compiled model's losses and gradients are compared with.

Written from the algebra of the three products, with `metis_compile.quantize` and nothing of the passes:

    fprop  Y = Q(X) Q(W)^T       blocks along the features
    dgrad  dX = Q(G) Q(W)        blocks along the outputs
    wgrad  dW = Q(G)^T Q(X)      blocks along the tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import metis_compile
from metis_compile.numerics import QuantSpec, uniform_noise

# A difference in the last bit of one layer's output can move a value of the next layer to the neighbouring code: a few
# elements in a tensor then differ by one step. A missing or wrong quantization changes a result by 5 to 15%.
SAME_DRAWS = 5e-3
# The same between bfloat16 layers, where a last bit is 2^-8: more elements, and now and then a whole block's scale.
BFLOAT16_DRAWS = 3e-2
# One product of the same quantized matrices: float32 summation order, which differs by CPU and by number of threads
# (2.4e-6 seen). An element that rounds the other way would be 1e-2.
SUMMATION_ORDER = 4e-6

Noise = Callable[[str, str], Tensor | None]


class ByHand(TorchFunctionMode):
    """Within: every F.linear is quantized.

    specs: "fprop"/"dgrad"/"wgrad" -> operand role -> spec text, or None for high precision. streams: of stochastic
    operands, (weight's data pointer, gemm) -> stream, with `seed` the int64 that the compiled graph drew.
    """

    def __init__(
        self,
        specs: Mapping[str, Mapping[str, str | None]],
        *,
        seed: Tensor | None = None,
        streams: Mapping[tuple[int, str], int] | None = None,
        skip: Callable[[Tensor], bool] = lambda weight: False,
    ) -> None:
        super().__init__()
        self.specs, self.seed, self.streams, self.skip = specs, seed, streams or {}, skip
        self.specs_of: dict[int, Any] = {}  # other specs for the weight at this address

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear:
            return func(*args, **kwargs)
        names = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        x, weight, bias = names["input"], names["weight"], names.get("bias")
        if self.skip(weight):
            return func(*args, **kwargs)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
            cast = weight.to(dtype)
        else:
            cast = weight
        with torch._C.DisableTorchFunction():
            return _Linear.apply(x, cast, bias, self, weight.data_ptr())

    def quantized(self, x: Tensor, gemm: str, role: str, axis: int, key: int) -> Tensor:
        text = self.specs_of.get(key, self.specs)[gemm][role]
        if text is None:
            return x.float()
        spec = QuantSpec.parse(text)
        noise = None
        if spec.rounding == "stochastic":
            noise = uniform_noise(self.seed, self.streams[key, gemm], x.shape)
        q = metis_compile.quantize(
            x, spec.format, axis, spec.block, spec.rounding, guard=spec.guard, scale_mode=spec.scale_mode, noise=noise
        )
        return q.dequantize()


class _Linear(torch.autograd.Function):
    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, hand: ByHand, key: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.hand, ctx.key, ctx.has_bias = hand, key, b is not None
        tokens = x.reshape(-1, x.shape[-1])
        y = hand.quantized(tokens, "fprop", "activation", 1, key) @ hand.quantized(w, "fprop", "weight", 1, key).T
        if b is not None:
            y = y + b.float()
        return y.to(x.dtype).reshape(*x.shape[:-1], -1).clone()  # no view: the model may write into it

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        hand, key = ctx.hand, ctx.key
        g2, x2 = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = hand.quantized(g2, "dgrad", "gradient", 1, key) @ hand.quantized(w, "dgrad", "weight", 0, key)
            dx = dx.to(x.dtype).reshape(x.shape)
        if ctx.needs_input_grad[1]:
            dw = hand.quantized(g2, "wgrad", "gradient", 0, key).T @ hand.quantized(x2, "wgrad", "activation", 0, key)
            dw = dw.to(w.dtype)
        if ctx.has_bias:
            db = g2.float().sum(0).to(g.dtype)
        return dx, dw, db, None, None


def uniform(spec: str | None, gradient: str | None = "same") -> dict[str, dict[str, str | None]]:
    """The same spec for every operand, or another one for gradients."""
    g = spec if gradient == "same" else gradient
    return {
        "fprop": {"activation": spec, "weight": spec},
        "dgrad": {"gradient": g, "weight": spec},
        "wgrad": {"gradient": g, "activation": spec},
    }


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of `expected`."""
    actual, expected = actual.detach().float(), expected.detach().float()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


def assert_same(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Every tensor of two equal structures within `tolerance` in relative_error."""
    actual = actual if isinstance(actual, dict) else {what or "value": actual}
    expected = expected if isinstance(expected, dict) else {what or "value": expected}
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, f"{name}: expected no gradient"
            continue
        assert actual[name] is not None, f"{name}: no gradient"
        assert actual[name].dtype == value.dtype, f"{name}: {actual[name].dtype}, expected {value.dtype}"
        error = relative_error(actual[name], value)
        assert error <= tolerance, f"{name}: relative error {error:.2e}, tolerance {tolerance:.0e}"


def gradients(model: torch.nn.Module) -> dict[str, Tensor | None]:
    """Copies of all gradients, by parameter name; clears them."""
    found = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found
