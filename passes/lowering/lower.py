"""Lower metis ops: to C++ kernels on the CPU, to Triton kernels on CUDA, else to aten ops that Inductor fuses.

The kernels are byte for byte what `metis_compile.numerics` defines; the aten ops are traced from it, so they can't
drift. Without Triton kernels, a quantization whose codes are only decoded again in the same graph never packs them:
the values are made from the unquantized tensor, with the same bits.

On CUDA one call quantizes a tensor for all products that read it: see `tiles`. One scale for a tensor or for a row is
left to Inductor, whose kernel for it reads and writes as little: the scale comes from a reduction of its own, and the
codes are elementwise, in one pass with whatever else reads the tensor. Products read the codes: see `multiply`.

What the C++ kernels multiply: see `cpu_gemm`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from metis_compile.kernels.cpu.compile import INPUTS
from metis_compile.kernels.cpu.ops import (
    CPU_DECODE,
    CPU_PARTS,
    CPU_TENSOR_SCALE,
    CPU_VALUES,
)
from metis_compile.kernels.materialize import register_materialize
from metis_compile.kernels.parts import tensor_target
from metis_compile.numerics import decode, encode, fake_quantize
from metis_compile.numerics.noise import stream_seed
from metis_compile.numerics.swizzle import swizzle
from metis_compile.ops.buffers import MATERIALIZE
from metis_compile.ops.held_amax import HELD_AMAX
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE, noise_of
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.calls import DequantizeCall, QuantizeCall

aten = torch.ops.aten


def lower_quantizations(context: PassContext) -> PassResult:
    """Replaces every metis.quantize and metis.dequantize that is left, and has metis.held_amax read what they do."""
    graph = context.graph
    nodes = [n for n in graph.nodes if n.target in (HELD_AMAX, QUANTIZE, DEQUANTIZE)]
    if not nodes:
        return PassResult()
    register_materialize()
    lowering = _Lowering(context)
    for node in nodes:
        if not node.users:
            continue
        if node.target is HELD_AMAX:
            lowering.held_amax(node)
        elif (quantization := QuantizeCall.of(node)) is not None:
            lowering.quantize(quantization)
        elif (decoding := DequantizeCall.of(node)) is not None:
            lowering.dequantize(decoding)
    graph.eliminate_dead_code()
    return PassResult(changed=len(nodes))


class _Lowering:
    def __init__(self, context: PassContext) -> None:
        self.builder, self.inliner, self.cpu_kernels = context.builder, context.inliner, context.cpu_kernels
        self._buffers: dict[fx.Node, fx.Node] = {}
        self._tensor_scales: dict[Any, list[fx.Node]] = {}

    def held_amax(self, node: fx.Node) -> None:
        """Has it read the buffer that kernels will read."""
        x: Any = node.args[0]
        if self._has_kernel(x):
            with self.builder.at(node, like=node):
                node.update_arg(0, self._stored(x))

    def quantize(self, call: QuantizeCall) -> None:
        """Emits the parts that leave the graph, and the values for each dequantize of the parts in this graph."""
        kernel = self._has_kernel(call.x)
        decoders = {
            u for p in call.parts for u in p.users if _decodes(u, call.node) and (kernel or u.target is DEQUANTIZE)
        }
        stored = [p for p in call.parts if any(u not in decoders for u in p.users)]
        if kernel:
            self._call_kernels(call, decoders, stored)
            return
        results = self._trace_numerics(call, bool(decoders), stored)
        for part, result in zip(stored, results, strict=False):
            part.replace_all_uses_with(result, delete_user_cb=lambda u: u not in decoders)
        for decoder in decoders:
            decoder.replace_all_uses_with(results[-1])

    def _has_kernel(self, x: fx.Node) -> bool:
        value = x.meta["val"]
        return self.cpu_kernels and value.device.type == "cpu" and value.dtype in INPUTS

    def _call_kernels(self, call: QuantizeCall, decoders: set[fx.Node], stored: list[fx.Node]) -> None:
        node, text = call.node, str(call.spec)
        with self.builder.at(node, like=node):
            x = self._stored(call.x)
            tensor_scale = self._tensor_scale(x if call.amax is None else call.amax, tensor_target(call.spec))
            given = [*tensor_scale, *([] if call.seed is None else [call.seed])]
            for exact in (False, True):
                users = [d for d in decoders if (d.target is CPU_DECODE) == exact]
                if users:
                    args = (x, given, text, call.axis, call.stream, exact)
                    values = self.builder.call(CPU_VALUES, args, name=f"{users[0].name}_values")
                    for user in users:
                        user.replace_all_uses_with(values)
            results: dict[int, fx.Node] = dict(enumerate(tensor_scale[1:], len(node.meta["val"]) - 1))
            if any(p.args[1] not in results for p in stored):
                made = self.builder.call(CPU_PARTS, (x, given, text, call.axis, call.stream), name=f"{node.name}_parts")
                for i in range(len(made.meta["val"])):
                    results[i] = self.builder.call(operator.getitem, (made, i))
        for part in stored:
            part.replace_all_uses_with(results[part.args[1]], delete_user_cb=lambda u: u not in decoders)  # type: ignore[index]

    def _stored(self, x: fx.Node) -> fx.Node:
        """x in one buffer, for all calls that read it: Inductor would have each store its own."""
        if x.op == "placeholder":
            return x
        if x not in self._buffers:
            self._buffers[x] = self.builder.call(MATERIALIZE, (x,), name=f"{x.name}_stored")
        return self._buffers[x]

    def _tensor_scale(self, x: Any, target: float | None) -> list[fx.Node]:
        """[enc, dec] of x, made once for all that quantize x; nothing where the format has no tensor scale.

        x: the tensor, or its amax, which is its own amax.
        """
        if target is None:
            return []
        if (x, target) not in self._tensor_scales:
            made = self.builder.call(CPU_TENSOR_SCALE, (x, target), name=f"{x.name}_tensor_scale")
            self._tensor_scales[x, target] = [self.builder.call(operator.getitem, (made, i)) for i in range(2)]
        return self._tensor_scales[x, target]

    def _trace_numerics(self, call: QuantizeCall, decoded: bool, stored: list[fx.Node]) -> list[fx.Node]:
        """The `stored` parts and then the values, as aten ops."""
        spec, axis, swizzled = call.spec, call.axis, call.swizzled
        seeded, held = call.seed is not None, call.amax is not None

        def run(x: torch.Tensor, *given: torch.Tensor) -> list[torch.Tensor]:
            seed, amax = (given[0] if seeded else None), (given[-1] if held else None)
            noise = noise_of(x, spec, axis, seed, 0)
            kept = encode(x, spec, axis, noise, amax) if stored else []
            if kept and swizzled:
                kept[1] = swizzle(kept[1], axis)
            values = [fake_quantize(x, spec, axis, noise, amax=amax)] if decoded else []
            return [kept[int(p.args[1])] for p in stored] + values  # type: ignore[arg-type]

        key = (str(spec), axis, tuple(p.args[1] for p in stored), decoded, swizzled, held)
        seed = [self._stream(call.node, call.seed, call.stream)] if call.seed is not None else []
        return self._emit(call.node, key, run, [call.x, *seed, *([call.amax] if held else [])])

    def _stream(self, node: fx.Node, seed: fx.Node, stream: int) -> fx.Node:
        """The seed of one stream, as a node: what is traced for one stream then serves all."""
        (result,) = self._emit(node, ("stream", stream), lambda seed: [stream_seed(seed, stream)], [seed])
        return result

    def dequantize(self, call: DequantizeCall) -> None:
        """Emits the decoding of parts that another graph made."""
        node, spec, axis, length = call.node, call.spec, call.axis, call.length
        if self.cpu_kernels and all(p.meta["val"].device.type == "cpu" for p in call.parts):
            with self.builder.at(node, like=node):
                args = (call.parts, str(spec), axis, length, False)
                values = self.builder.call(CPU_DECODE, args, name=f"{node.name}_kernel")
            node.replace_all_uses_with(values)
            return
        symbolic = [length] if isinstance(length, fx.Node) else []

        def run(*inputs: Any) -> list[torch.Tensor]:
            tensors, size = (inputs[:-1], inputs[-1]) if symbolic else (inputs, int(length))  # type: ignore[arg-type]
            return [decode(tensors, spec, axis, size)]

        key = (str(spec), axis, None if symbolic else length)
        (result,) = self._emit(node, key, run, [*call.parts, *symbolic])
        node.replace_all_uses_with(result)

    def _emit(self, node: fx.Node, key: Any, run: Callable[..., Any], inputs: Sequence[Any]) -> list[fx.Node]:
        """Inserts what `run` does to `inputs` before `node`, in its place."""
        with self.builder.at(node, like=node):
            return self.inliner.insert((node.target, key), run, inputs, node.name)


def _decodes(user: fx.Node, quantized: fx.Node) -> bool:
    """Whether `user` decodes exactly the parts of `quantized`, all in this graph."""
    if user.target not in (DEQUANTIZE, CPU_DECODE):
        return False
    parts: Any = user.args[0]
    return all(p.target is operator.getitem and p.args[0] is quantized for p in parts)
