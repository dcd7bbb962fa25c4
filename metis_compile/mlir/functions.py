"""What becomes a private function of its own in the MLIR, called at each use, for a compiler to recognize by name.

    @metis_quantize_nvfp4_1x16_stochastic_round_up_axis0_24x32(x, seed?) -> codes, block scales, tensor scale
    @metis_quantize_nvfp4_1x16_nearest_held_axis1_24x32(x, seed?, amax) -> the same, of an amax that is held
    @metis_dequantize_nvfp4_1x16_axis1_24x32(codes, block scales, tensor scale) -> float32 values
    @metis_orthonormalize_32x4(y) -> Q of y = Q R
    @metis_attention_..., @metis_attention_backward_...

Names end with the sizes of the unquantized tensor, and its dtype where it is not float32. Bodies are traced from
the code that defines them: `metis_compile.numerics` for quantization. The seed is that of one stream: see
`metis_compile.numerics.noise.stream_seed`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from metis_compile.compat import fx_graph_cse
from metis_compile.mlir.attention import ATTENTION, ATTENTION_BACKWARD, attention, attention_backward, without_dropout
from metis_compile.mlir.orthonormal import householder
from metis_compile.mlir.simplify import simplify
from metis_compile.numerics import QuantSpec, decode, encode, noise_shape, uniform_noise
from metis_compile.numerics.noise import stream_seed
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE, amax_of
from metis_compile.passes.graph.builder import GraphBuilder

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Function:
    """A private function, and the arguments of one call of it."""

    name: str
    run: Callable[..., Sequence[Tensor]]  # traced once for each name
    inputs: tuple[fx.Node, ...]

    def trace(self, builder: GraphBuilder) -> fx.GraphModule:
        """Its body, in ops that torch-mlir lowers."""
        assert builder.fake_mode is not None
        with builder.fake_mode:
            body = make_fx(self.run)(*(node.meta["val"] for node in self.inputs))
        body.graph = fx_graph_cse(body.graph)
        simplify(body.graph)
        return body


def function_of(node: fx.Node, builder: GraphBuilder) -> Function | None:
    """The function that a node of a captured graph becomes a call of; None for ordinary ops."""
    build = BUILDERS.get(node.target)
    return None if build is None or node.op != "call_function" else build(node, builder)


def _quantize(node: fx.Node, builder: GraphBuilder) -> Function:
    x, text, axis, *random = list[Any](node.args)
    seed, stream = (*random[:2], None, 0)[:2]
    spec, shape = QuantSpec.parse(str(text)), x.meta["val"].shape  # type: ignore[union-attr]

    amax = amax_of(node)

    def run(x: Tensor, *given: Tensor) -> list[Tensor]:
        noise = None if seed is None else uniform_noise(given[0], 0, noise_shape(x.shape, spec, axis))
        return encode(x, spec, axis, noise, None if amax is None else given[-1])  # type: ignore[arg-type]

    inputs = [x]
    if seed is not None:
        of_stream = stream_seed(torch.zeros((), dtype=torch.int64), stream)  # type: ignore[arg-type]
        with builder.at(node, like=node):
            inputs.append(builder.call(aten.add.Scalar, (seed, int(of_stream))))
    held = "" if amax is None else "_held"
    inputs += [] if amax is None else [amax]
    name = f"metis_quantize_{_word(str(spec))}{held}_axis{axis}_{_sizes(shape)}{_dtype(x)}"
    return Function(name=name, run=run, inputs=tuple(inputs))  # type: ignore[arg-type]


def _dequantize(node: fx.Node, builder: GraphBuilder) -> Function:
    parts, text, axis, length = node.args
    spec = QuantSpec.parse(str(text))

    def run(*parts: Tensor) -> list[Tensor]:
        return [decode(parts, spec, axis, length)]  # type: ignore[arg-type]

    # how it was rounded makes no difference to what the codes mean
    name = f"metis_dequantize_{spec.format}_{spec.block}_axis{axis}_{_sizes(node.meta['val'].shape)}"
    return Function(name=name, run=run, inputs=tuple(parts))  # type: ignore[arg-type]


def _orthonormalize(node: fx.Node, builder: GraphBuilder) -> Function | None:
    """A QR of which R is not read."""
    (y, *mode) = node.args
    shape = y.meta["val"].shape  # type: ignore[union-attr]
    reads_r = any(user.args[1] == 1 for user in node.users)
    if reads_r or mode not in ([], ["reduced"]) or len(shape) != 2 or shape[0] < shape[1]:
        return None
    name = f"metis_orthonormalize_{_sizes(shape)}{_dtype(y)}"
    return Function(name=name, run=lambda y: [householder(y)], inputs=(y,))  # type: ignore[arg-type]


def _attention(node: fx.Node, builder: GraphBuilder) -> Function | None:
    if not without_dropout(node):
        return None
    q, k, v, *options = node.args
    causal = len(options) > 1 and options[1]
    mask, scale = node.kwargs.get("attn_mask"), node.kwargs.get("scale")

    def run(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> list[Tensor]:
        return attention(q, k, v, mask[0] if mask else None, bool(causal), scale)  # type: ignore[arg-type]

    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    return Function(name=f"metis_attention_{_attention_name(q, k, causal, mask, scale)}", run=run, inputs=inputs)  # type: ignore[arg-type]


def _attention_backward(node: fx.Node, builder: GraphBuilder) -> Function | None:
    if not without_dropout(node):
        return None
    grad, q, k, v, out, lse, _, causal = node.args
    mask, scale = node.kwargs.get("attn_mask"), node.kwargs.get("scale")

    def run(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *mask: Tensor) -> list[Tensor]:
        return attention_backward(grad, q, k, v, out, lse, mask[0] if mask else None, bool(causal), scale)  # type: ignore[arg-type]

    inputs = (grad, q, k, v, out, lse, *([] if mask is None else [mask]))
    name = f"metis_attention_backward_{_attention_name(q, k, causal, mask, scale)}"
    return Function(name=name, run=run, inputs=inputs)  # type: ignore[arg-type]


def _attention_name(q: Any, k: Any, causal: Any, mask: Any, scale: Any) -> str:
    words = [_sizes(q.meta["val"].shape), _sizes(k.meta["val"].shape)]
    words += ["causal"] if causal else []
    words += [f"mask{_sizes(mask.meta['val'].shape)}{_dtype(mask)}"] if mask is not None else []
    words += [f"scale{_word(repr(float(scale)))}"] if scale is not None else []
    return "_".join(words) + _dtype(q)


def _word(text: str) -> str:
    """Letters, digits and underscores: "nvfp4 1x16 nearest 4/6-mse" as nvfp4_1x16_nearest_4_6_mse."""
    return re.sub(r"\W+", "_", text)


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _dtype(node: Any) -> str:
    dtype = node.meta["val"].dtype
    return "" if dtype == torch.float32 else "_" + str(dtype).removeprefix("torch.")


BUILDERS: dict[Any, Callable[[fx.Node, GraphBuilder], Function | None]] = {
    QUANTIZE: _quantize,
    DEQUANTIZE: _dequantize,
    aten.linalg_qr.default: _orthonormalize,
    ATTENTION: _attention,
    ATTENTION_BACKWARD: _attention_backward,
}
