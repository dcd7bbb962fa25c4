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
from metis_compile.numerics import QuantSpec, decode, encode, fake_quantize
from metis_compile.numerics.noise import stream_seed
from metis_compile.numerics.swizzle import swizzle
from metis_compile.ops.buffers import MATERIALIZE
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE, noise_of
from metis_compile.passes.context import PassContext, PassResult

aten = torch.ops.aten


def lower_quantizations(context: PassContext) -> PassResult:
    """Replaces every metis.quantize and metis.dequantize that is left."""
    graph = context.graph
    nodes = [n for n in graph.nodes if n.target is QUANTIZE or n.target is DEQUANTIZE]
    if not nodes:
        return PassResult()
    register_materialize()
    lowering = _Lowering(context)
    for node in nodes:
        if node.target is QUANTIZE:
            if len(node.users) > 0:
                lowering.quantize(node)
        elif len(node.users) > 0:
            lowering.dequantize(node)
    graph.eliminate_dead_code()
    return PassResult(changed=len(nodes))


class _Lowering:
    def __init__(self, context: PassContext) -> None:
        self.builder, self.inliner, self.cpu_kernels = context.builder, context.inliner, context.cpu_kernels
        self._buffers: dict[fx.Node, fx.Node] = {}
        self._tensor_scales: dict[Any, list[fx.Node]] = {}

    def quantize(self, node: fx.Node) -> None:
        """Emits the parts that leave the graph, and the values for each dequantize of the parts in this graph."""
        parts = [u for u in node.users if u.target is operator.getitem]
        kernel = self._has_kernel(node.args[0])
        decoders = {u for p in parts for u in p.users if _decodes(u, node) and (kernel or u.target is DEQUANTIZE)}
        stored = [p for p in parts if any(u not in decoders for u in p.users)]
        if kernel:
            self._call_kernels(node, decoders, stored)
            return
        results = self._trace_numerics(node, bool(decoders), stored)
        for part, result in zip(stored, results, strict=False):
            part.replace_all_uses_with(result, delete_user_cb=lambda u: u not in decoders)
        for decoder in decoders:
            decoder.replace_all_uses_with(results[-1])

    def _has_kernel(self, x: Any) -> bool:
        value = x.meta["val"]
        return self.cpu_kernels and value.device.type == "cpu" and value.dtype in INPUTS

    def _call_kernels(self, node: fx.Node, decoders: set[fx.Node], stored: list[fx.Node]) -> None:
        x, text, axis = node.args[:3]
        seed, stream = (*node.args[3:], None, 0)[:2]
        spec = QuantSpec.parse(str(text))
        with self.builder.at(node, like=node):
            x = self._stored(x)
            tensor_scale = self._tensor_scale(x, tensor_target(spec))
            given = [*tensor_scale, *([] if seed is None else [seed])]
            for exact in (False, True):
                users = [d for d in decoders if (d.target is CPU_DECODE) == exact]
                if users:
                    args = (x, given, text, axis, stream, exact)
                    values = self.builder.call(CPU_VALUES, args, name=f"{users[0].name}_values")
                    for user in users:
                        user.replace_all_uses_with(values)
            results: dict[int, fx.Node] = dict(enumerate(tensor_scale[1:], len(node.meta["val"]) - 1))
            if any(p.args[1] not in results for p in stored):
                made = self.builder.call(CPU_PARTS, (x, given, text, axis, stream), name=f"{node.name}_parts")
                for i in range(len(made.meta["val"])):
                    results[i] = self.builder.call(operator.getitem, (made, i))
        for part in stored:
            part.replace_all_uses_with(results[part.args[1]], delete_user_cb=lambda u: u not in decoders)  # type: ignore[index]

    def _stored(self, x: Any) -> fx.Node:
        """x in one buffer, for all calls that read it: Inductor would have each store its own."""
        if x.op == "placeholder":
            return x  # type: ignore[no-any-return]
        if x not in self._buffers:
            self._buffers[x] = self.builder.call(MATERIALIZE, (x,), name=f"{x.name}_stored")
        return self._buffers[x]

    def _tensor_scale(self, x: Any, target: float | None) -> list[fx.Node]:
        """[enc, dec] of x, made once for all that quantize x; nothing where the format has no tensor scale."""
        if target is None:
            return []
        if (x, target) not in self._tensor_scales:
            made = self.builder.call(CPU_TENSOR_SCALE, (x, target), name=f"{x.name}_tensor_scale")
            self._tensor_scales[x, target] = [self.builder.call(operator.getitem, (made, i)) for i in range(2)]
        return self._tensor_scales[x, target]

    def _trace_numerics(self, node: fx.Node, decoded: bool, stored: list[fx.Node]) -> list[fx.Node]:
        """The `stored` parts and then the values, as aten ops."""
        x, text, axis = node.args[:3]
        swizzled = node.kwargs.get("swizzled", False)
        seed, stream = (*node.args[3:], None, 0)[:2]
        spec = QuantSpec.parse(str(text))

        def run(x: torch.Tensor, *seed: torch.Tensor) -> list[torch.Tensor]:
            noise = noise_of(x, spec, axis, seed[0] if seed else None, 0)  # type: ignore[arg-type]
            kept = encode(x, spec, axis, noise) if stored else []  # type: ignore[arg-type]
            if kept and swizzled:
                kept[1] = swizzle(kept[1], axis)  # type: ignore[arg-type]
            values = [fake_quantize(x, spec, axis, noise)] if decoded else []  # type: ignore[arg-type]
            return [kept[int(p.args[1])] for p in stored] + values  # type: ignore[arg-type]

        key = (text, axis, tuple(p.args[1] for p in stored), decoded, swizzled)
        return self._emit(node, key, run, [x] if seed is None else [x, self._stream(node, seed, stream)])

    def _stream(self, node: fx.Node, seed: Any, stream: Any) -> fx.Node:
        """The seed of one stream, as a node: what is traced for one stream then serves all."""
        (result,) = self._emit(node, ("stream", stream), lambda seed: [stream_seed(seed, stream)], [seed])
        return result

    def dequantize(self, node: fx.Node) -> None:
        """Emits the decoding of parts that another graph made."""
        parts, text, axis, length = node.args
        if self.cpu_kernels and all(p.meta["val"].device.type == "cpu" for p in parts):  # type: ignore[union-attr]
            with self.builder.at(node, like=node):
                values = self.builder.call(CPU_DECODE, (parts, text, axis, length, False), name=f"{node.name}_kernel")
            node.replace_all_uses_with(values)
            return
        spec = QuantSpec.parse(str(text))
        symbolic = [length] if isinstance(length, fx.Node) else []

        def run(*inputs: Any) -> list[torch.Tensor]:
            tensors, size = (inputs[:-1], inputs[-1]) if symbolic else (inputs, length)
            return [decode(tensors, spec, axis, size)]  # type: ignore[arg-type]

        key = (text, axis, None if symbolic else length)
        (result,) = self._emit(node, key, run, [*parts, *symbolic])  # type: ignore[misc]
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
